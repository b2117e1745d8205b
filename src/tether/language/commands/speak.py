"""Commands that let a model speak: generate and chat."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import tyro

from tether.arguments import parse, print_json, say
from tether.errors import Interrupted, UserError
from tether.language.data.templates import Dialogue, Template
from tether.language.data.tokens import Completion
from tether.language.models.from_run import load_with_template
from tether.language.models.generation import generate as generate_ids
from tether.language.models.language_model import LanguageModel
from tether.learning import seeding


@dataclass(frozen=True)
class SpeechOptions:
    """How answers are sampled."""

    max_new_tokens: int = 128
    """The most tokens an answer may have; fewer if the model's context ends first."""
    temperature: float = 0.7
    """The logits are divided by this: 1 samples from the model as it is, 0 always takes the most
    likely token."""
    top_k: int | None = None
    """Samples among this many of the most likely tokens only."""
    top_p: float | None = None
    """Samples among the smallest set of tokens whose probabilities add up to this."""
    seed: int = 0
    """Decides what is sampled."""
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """The data type of the model's parameters; a run keeps its own."""
    device: str = "cpu"
    """Where the model is placed, such as cpu or cuda."""


@dataclass(frozen=True)
class GenerateOptions:
    """Continue or answer a prompt with a model, or with the model of a run."""

    model: tyro.conf.Positional[str]
    """A run's folder, tiny, smollm2-135m-instruct, a model's folder, or an id of the Hugging Face
    hub."""
    speech: SpeechOptions
    """How answers are sampled."""
    prompt: str | None = None
    """The text to continue or, with a chat model, to answer; all of stdin if not given."""
    samples: int = 1
    """The number of answers."""
    json: bool = False
    """Prints one JSON object as the last line of stdout, instead of the text."""


def generate(arguments: Sequence[str]) -> None:
    """`tether generate RUN_OR_MODEL --prompt "..."`: the answer on stdout, as it comes."""
    options = parse(GenerateOptions, arguments, prog="tether generate")
    if options.samples < 1:
        raise UserError(f"samples is {options.samples}; expected at least 1")
    prompt = options.prompt if options.prompt is not None else _all_of_stdin()
    speech = options.speech
    model, template = load_with_template(options.model, dtype=speech.dtype, device=speech.device)
    ids = template.prompt_ids(prompt)
    streamed = options.samples == 1 and not options.json
    stream = Stream(template)
    answers = _speak(model, ids, speech, options.samples, stream if streamed else None)
    if streamed:
        stream.end()
    texts = [template.decode(answer.completion_ids) for answer in answers]
    if options.json:
        print_json(
            {
                "model": options.model,
                "prompt": prompt,
                "completions": texts,
                "tokens": [len(answer.completion_ids) for answer in answers],
                "finished": [answer.finished for answer in answers],
            }
        )
    elif not streamed:
        print("\n\n".join(texts), flush=True)


@dataclass(frozen=True)
class ChatOptions:
    """Talk with a model, or with the model of a run. /reset starts a new conversation; /quit ends
    it.
    """

    model: tyro.conf.Positional[str]
    """A run's folder, tiny, smollm2-135m-instruct, a model's folder, or an id of the Hugging Face
    hub."""
    speech: SpeechOptions
    """How answers are sampled."""
    system: str | None = None
    """The system message, which the model reads before the conversation."""


def chat(arguments: Sequence[str]) -> None:
    """`tether chat RUN_OR_MODEL`: one line of stdin, one answer on stdout, turn by turn."""
    options = parse(ChatOptions, arguments, prog="tether chat")
    speech = options.speech
    model, template = load_with_template(options.model, dtype=speech.dtype, device=speech.device)
    dialogue = Dialogue(template, options.system)
    say(f"{model.name}: type a message; /reset forgets the conversation, /quit ends it")
    turn = 0
    try:
        while (line := _line()) is not None:
            if line in ("/quit", "/exit"):
                return
            if line == "/reset":
                dialogue = Dialogue(template, options.system)
            elif line:
                _answer(model, dialogue, line, speech, turn)
                turn += 1
    except KeyboardInterrupt:
        say("")
        raise Interrupted("stopped") from None


class Stream:
    """Text on stdout as its tokens come."""

    def __init__(self, template: Template) -> None:
        """Nothing has come yet."""
        self._template = template
        self._ids: list[int] = []
        self._shown = 0

    def __call__(self, _: int, token: int) -> None:
        """Takes a token, and shows what is certain to stay."""
        self._ids.append(token)
        text = self._template.decode(self._ids)
        # The end of a text may be the first bytes of a character that the next token completes.
        self._show(text.rstrip("\ufffd"))

    def end(self) -> None:
        """Shows the rest, and ends the line."""
        self._show(self._template.decode(self._ids))
        print(flush=True)

    def _show(self, text: str) -> None:
        print(text[self._shown :], end="", flush=True)
        self._shown = max(self._shown, len(text))


def _answer(
    model: LanguageModel, dialogue: Dialogue, line: str, speech: SpeechOptions, turn: int
) -> None:
    stream = Stream(dialogue.template)
    try:
        ids = dialogue.ask(line)
        answer = _speak(model, ids, speech, 1, stream, turn)[0]
        stream.end()
        dialogue.answered(answer.completion_ids)
    except UserError as error:
        # One message that cannot be answered is no reason to lose the conversation.
        dialogue.forget_question()
        say(f"tether: {error}")


def _speak(
    model: LanguageModel,
    ids: list[int],
    speech: SpeechOptions,
    samples: int,
    stream: Stream | None,
    turn: int = 0,
) -> list[Completion]:
    left = model.context - len(ids)
    if left < 1:
        raise UserError(
            f"the prompt takes {len(ids)} tokens, and the model's context is {model.context}; "
            "shorten it, or /reset the conversation"
        )
    if speech.seed < 0:
        raise UserError(f"seed is {speech.seed}; expected at least 0")
    return generate_ids(
        model,
        [ids] * samples,
        max_new_tokens=min(speech.max_new_tokens, left) if speech.max_new_tokens > 0 else 0,
        temperature=speech.temperature,
        top_k=speech.top_k,
        top_p=speech.top_p,
        seeds=[
            seeding.derived_seed(speech.seed, seeding.Stream.CONVERSATION, turn, sample)
            for sample in range(samples)
        ],
        on_token=stream,
    )


def _all_of_stdin() -> str:
    try:
        return sys.stdin.read()
    except UnicodeDecodeError as error:
        raise UserError(f"stdin is not UTF-8: byte {error.start + 1}") from None


def _line() -> str | None:
    """The next line of stdin, or None at its end."""
    if sys.stdin.isatty():
        print("> ", end="", file=sys.stderr, flush=True)
    try:
        line = sys.stdin.readline()
    except UnicodeDecodeError as error:
        raise UserError(f"stdin is not UTF-8: byte {error.start + 1}") from None
    return line.strip() if line else None

"""From text to token ids, and where they meet: the boundaries of prompts and answers.

Ids are made piece by piece, each as it is met in use: the prompt as a model is given it, then the
answer as a model writes it after just these ids. Joined text is never tokenized again, because
merges across a boundary make tokens that no model is given or writes there: "The answer is" and
" 42" need not be the tokens of "The answer is 42", and a prompt's last token could change with its
answer.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final, Literal, NamedTuple, TypeAlias

from tether.errors import UserError
from tether.language.data.fields import Text, Turn
from tether.language.reviews.prompts import leading_ids

Kind: TypeAlias = Literal["plain", "chat"]

PLAIN_CHAT: Final = (
    "{{ lead }}{% for message in messages %}"
    "{% if message['role'] == 'assistant' %}Assistant: {{ message['content'] }}{{ eos_token }}\n\n"
    "{% elif message['role'] == 'system' %}{{ message['content'] }}\n\n"
    "{% else %}{{ message['role'] | capitalize }}: {{ message['content'] }}\n\n{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}Assistant:{% endif %}"
)
"""How a conversation is laid out for a model that comes without a chat template."""


class Tokens(NamedTuple):
    """A conversation up to its first answer, what follows, and what of that is to be learned."""

    prompt_ids: list[int]
    completion_ids: list[int]
    learned: list[bool]


class Template:
    """How text becomes tokens for one tokenizer.

    Attributes:
        kind: ``"plain"``: a text is continued as it is; ``"chat"``: a text is the user's message,
            and what follows is the assistant's. Lists of messages go through the tokenizer's chat
            template in both, or through a plain one where it has none.
        stop_ids: tokens at which an answer ends; training teaches the first of them.
    """

    def __init__(self, tokenizer: Any, kind: Kind = "plain") -> None:
        """Takes a Hugging Face tokenizer.

        Raises:
            UserError: it has no end-of-sequence token, or the kind is neither of the two.
        """
        if kind not in ("plain", "chat"):
            raise UserError(f"template is {kind!r}; expected 'plain' or 'chat'")
        if tokenizer.eos_token_id is None:
            raise UserError(
                "the tokenizer has no end-of-sequence token, so no model could learn to stop; set "
                "its eos_token"
            )
        self.tokenizer = tokenizer
        self.kind = kind
        self._eos: int = tokenizer.eos_token_id
        self._lead = leading_ids(tokenizer)
        added = getattr(tokenizer, "added_tokens_decoder", {}).values()
        self._special = {*tokenizer.all_special_tokens, *(t.content for t in added if t.special)}
        first = tokenizer.convert_ids_to_tokens(self._encode("a"))[0]
        # SentencePiece and its kin put a space before every text, also before the middle of one.
        self._adds_space = first[0] in "▁Ġ"
        self._closing = self._find_closing()
        closing = self._encode(self._closing) if self._closing else [self._eos]
        self.stop_ids: tuple[int, ...] = tuple(dict.fromkeys((closing[0], self._eos)))

    def prompt_ids(self, prompt: Text) -> list[int]:
        """Ids of a prompt, up to where the answer begins; never empty.

        Raises:
            UserError: the chat template refuses the turns, or a message holds a special token.
        """
        if isinstance(prompt, str) and self.kind == "plain":
            ids = self._lead + self._encode(prompt, literal=True)
            if ids:
                return ids
            # The first token of an answer has to be predicted from something.
            bos = self.tokenizer.bos_token_id
            return [self._eos if bos is None else bos]
        return self._encode(self.render(_turns(prompt), answer_next=True))

    def completion_ids(self, prompt: Text, completion: str) -> list[int]:
        """Ids of an answer to this prompt, with the token that ends it.

        Raises:
            UserError: as for :meth:`prompt_ids`, or the template rewrites what came before.
        """
        if isinstance(prompt, str) and self.kind == "plain":
            return [*self.continuation(completion, literal=True), self._eos]
        turns = _turns(prompt)
        before = self.render(turns, answer_next=True)
        return self.answer(before, (*turns, Turn("assistant", completion)))[0]

    def conversation(self, turns: Sequence[Turn]) -> Tokens:
        """Ids of a conversation in which every answer of the assistant is to be learned.

        To be learned are an answer's text and the token that ends it, nothing that the template
        writes around them.

        Raises:
            UserError: no answer, one with nothing before it, a special token in a message, or a
                template that renders turns otherwise once others follow.
        """
        answers = [index for index, turn in enumerate(turns) if turn.role == "assistant"]
        if not answers or answers[0] == 0:
            raise UserError("a conversation needs a message, then an answer of the assistant")
        before = self.render(turns[: answers[0]], answer_next=True)
        tokens = Tokens(self._encode(before), [], [])
        done = ""
        for index in answers:
            if done:
                before = self.render(turns[:index], answer_next=True)
                between = self.continuation(after(done, before))
                tokens.completion_ids.extend(between)
                tokens.learned.extend([False] * len(between))
            ids, done = self.answer(before, turns[: index + 1])
            tokens.completion_ids.extend(ids)
            tokens.learned.extend([True] * len(ids))
        return tokens

    def answer(self, before: str, turns: Sequence[Turn]) -> tuple[list[int], str]:
        """Ids of the last turn, with the token that ends it, and the rendering up to there.

        Args:
            before: the rendering up to where the last turn's answer begins.
            turns: the last is the assistant's.
        """
        written = after(before, self.render(turns, answer_next=False))
        if self._closing is None:
            # This template never ends an answer: the end has to be taught all the same.
            written = written.rstrip()
            return [*self.continuation(written), self._eos], before + written
        cut = written.find(self._closing)
        if cut < 0:
            raise UserError(
                f"the chat template ends an answer with {self._closing!r}, but not this one"
            )
        written = written[: cut + len(self._closing)]
        return self.continuation(written), before + written

    def render(self, turns: Sequence[Turn], *, answer_next: bool) -> str:
        """The conversation as one text, if `answer_next` up to where the answer begins.

        Raises:
            UserError: the chat template refuses the turns, or a message holds a special token.
        """
        from jinja2 import TemplateError

        for number, turn in enumerate(turns, start=1):
            for special in self._special:
                if special in turn.content:
                    raise UserError(
                        f"message {number} holds {special!r}, which the chat template gives a "
                        "meaning of its own; remove or rewrite it"
                    )
        own = self.tokenizer.chat_template is None
        try:
            text: str = self.tokenizer.apply_chat_template(
                [{"role": turn.role, "content": turn.content} for turn in turns],
                chat_template=PLAIN_CHAT if own else None,
                add_generation_prompt=answer_next,
                tokenize=False,
                lead=self.tokenizer.decode(self._lead),
            )
        except TemplateError as error:
            roles = ", ".join(turn.role for turn in turns)
            raise UserError(f"the chat template refuses messages of {roles}: {error}") from None
        return text

    def continuation(self, text: str, *, literal: bool = False) -> list[int]:
        """Ids of a text that goes on where another ended.

        Args:
            text: what follows, with its own leading space if it has one.
            literal: names of special tokens in the text are text, and not those tokens.
        """
        if self._adds_space:
            for anchor in ("\n", ".", "|"):
                head = self._encode(anchor, literal=literal)
                ids = self._encode(anchor + text, literal=literal)
                if ids[: len(head)] == head:
                    return ids[len(head) :]
        return self._encode(text, literal=literal)

    def decode(self, ids: Sequence[int]) -> str:
        """The text of an answer, without special tokens."""
        text: str = self.tokenizer.decode(
            list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False
        )
        return text

    def _encode(self, text: str, *, literal: bool = False) -> list[int]:
        ids: list[int] = self.tokenizer(
            text, add_special_tokens=False, split_special_tokens=literal, verbose=False
        )["input_ids"]
        return ids

    def _find_closing(self) -> str | None:
        """The special token that ends an answer in this chat template; None if there is none."""
        question, answer = Turn("user", "a"), Turn("assistant", "b")
        try:
            before = self.render([question], answer_next=True)
            written = after(before, self.render([question, answer], answer_next=False))
        except UserError:
            # Told when a conversation meets this template; plain texts never do.
            return None
        found = [(written.find(special), special) for special in self._special]
        places = [(place, special) for place, special in found if place >= 0]
        # Of two that begin in one place, the tokenizer takes the longer.
        return min(places, key=lambda item: (item[0], -len(item[1])))[1] if places else None


class Dialogue:
    """A conversation under way, as the tokens a model was given and those it said.

    What the model said stays as it said it, token by token, so the next answer is predicted from
    the very tokens that training would have put there.
    """

    def __init__(self, template: Template, system: str | None = None) -> None:
        """Begins with the system's message, if there is one."""
        self.template = template
        self.turns = [] if system is None else [Turn("system", system)]
        self._ids: list[int] = []
        self._done = ""
        self._before = (self.turns, self._ids, self._done)

    def ask(self, text: str) -> list[int]:
        """Adds the user's message; returns the ids of all up to where the answer begins.

        Raises:
            UserError: the chat template refuses it, or it holds a special token.
        """
        turns = [*self.turns, Turn("user", text)]
        before = self.template.render(turns, answer_next=True)
        if self._done:
            ids = self._ids + self.template.continuation(after(self._done, before))
        else:
            ids = self.template.prompt_ids(tuple(turns))
        self._before = (self.turns, self._ids, self._done)
        self.turns, self._ids, self._done = turns, ids, before
        return list(ids)

    def forget_question(self) -> None:
        """Takes back the last :meth:`ask`, if it has not been answered."""
        self.turns, self._ids, self._done = self._before

    def answered(self, ids: Sequence[int]) -> str:
        """Adds the model's answer, as the ids it said; returns the text of it."""
        stops = self.template.stop_ids
        text = self.template.decode(ids)
        turns = [*self.turns, Turn("assistant", text)]
        _, self._done = self.template.answer(self._done, turns)
        # An answer that was cut off is ended, or the user's message would be part of it.
        ended = bool(ids) and ids[-1] in stops
        self._ids = [*self._ids, *ids] if ended else [*self._ids, *ids, stops[0]]
        self.turns = turns
        self._before = (self.turns, self._ids, self._done)
        return text


def after(beginning: str, whole: str) -> str:
    """What a rendering adds to a shorter one.

    Raises:
        UserError: it does not begin with the shorter one.
    """
    if not whole.startswith(beginning):
        raise UserError(
            "the chat template renders earlier messages differently once others follow, so "
            "training would not match use; give the last answer alone, as prompt and completion"
        )
    return whole[len(beginning) :]


def _turns(prompt: Text) -> tuple[Turn, ...]:
    return (Turn("user", prompt),) if isinstance(prompt, str) else prompt

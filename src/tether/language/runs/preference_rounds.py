"""Rounds of learning from comparisons: sample, ask, learn a reward, learn a policy; and again.

A round samples two answers to each of some prompts from the newest policy, asks a teacher which is
better, trains a reward model on all answers so far, and trains a new policy from the first model
against it. All comparisons are in the store of the folder; the reward model and the policy of each
round are ordinary runs in it. Every step is done once: the same call on the same folder goes on
where the last one stopped.

Source: Ziegler et al., "Fine-tuning language models from human preferences" (2019), section 2.3,
and InstructGPT (2022), section 3.1: newer comparisons are of the newer policy's answers.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import numpy as np
from pydantic import Field

from tether.errors import RunError, UserError
from tether.language.data.tokens import Completion
from tether.language.methods import METHODS
from tether.language.methods.rlhf.given_rewards import GivenRewards
from tether.language.methods.rlhf.reward_settings import RewardSettings
from tether.language.methods.rlhf.rewards import open_scorer
from tether.language.models.from_run import Setup
from tether.language.models.generation import generate
from tether.language.models.reward_function import RewardFunction
from tether.language.models.scoring import Scorer
from tether.language.runs import training
from tether.language.runs.prepare import ModelAndData, prepare
from tether.learning.config import Config
from tether.learning.seeding import Stream, derived_seed, seed_sequence
from tether.learning.storage.durable import write_json
from tether.preferences.export import export
from tether.preferences.oracle import OracleTeacher
from tether.preferences.places import STORE_FILE
from tether.preferences.records import Item, Query, Text
from tether.preferences.store import Store

HUMAN: Final = "human"
SETTINGS_FILE: Final = "prefer.json"

_TRIES: Final = 4


class RoundSettings(Config):
    """Settings of the rounds."""

    rounds: int = Field(3, ge=1)
    """Rounds of comparisons. More rounds compare answers of better policies."""
    comparisons: int = Field(64, ge=1)
    """The number of comparisons asked for in each round."""
    reward_epochs: float = Field(1.0, gt=0)
    """The passes of a reward model over all comparisons so far."""
    policy_steps: int = Field(512, ge=1)
    """The episodes that the policy of each round is trained on."""
    reward_learning_rate: float | None = Field(None, gt=0)
    """The learning rate of reward models; that of `tether reward` if not given."""
    learning_rate: float | None = Field(None, gt=0)
    """The learning rate of policies; that of `tether rlhf` if not given."""
    batch_size: int | None = Field(None, ge=1)
    """Comparisons in a batch of the reward model, and episodes in one of the policy; those of
    `tether reward` and `tether rlhf` if not given."""
    max_new_tokens: int = Field(32, ge=1)
    """The most tokens of an answer."""
    temperature: float = Field(1.0, gt=0)
    """The logits are divided by this when answers are sampled to be compared."""
    beta: float | None = Field(None, gt=0)
    """The rationality of a teacher that is a score: it prefers the first answer with probability
    sigmoid(beta * difference of scores); if not given, always the one that scores higher."""
    mistake: float = Field(0.0, ge=0, le=1)
    """The probability that such a teacher says the opposite."""


@dataclass(frozen=True)
class Round:
    """What a round came to.

    Attributes:
        number: from 0; the last one only measures.
        score: mean of what the teacher's score gives the sampled answers; None: people.
        labels: comparisons that have been answered so far.
        policy: the run of the policy whose answers were sampled; None: the first model.
    """

    number: int
    score: float | None
    labels: int
    policy: Path | None


def prefer(
    *,
    model: str,
    data: str,
    teacher: str | Callable[..., Any],
    out: str | Path,
    settings: RoundSettings | None = None,
    progress: bool = True,
    on_round: Callable[[Round], None] | None = None,
    poll_seconds: float = 2.0,
    **setup: Any,
) -> list[Round]:
    """Learns from comparisons in rounds, in one folder.

    Args:
        model: what to begin with, and what each policy is kept close to.
        data: prompts: ``movie-reviews``, or as for ``tether rlhf``.
        teacher: ``human``: people, with ``tether label OUT``; else a score that decides who is
            better, named like a reward of ``tether rlhf`` or a function with TRL's convention.
        out: the folder; one with the same settings is continued.
        settings: how long to train, and how.
        progress: shows the progress of every run.
        on_round: called after the answers of each round have been sampled and judged.
        poll_seconds: how often to look for people's answers.
        **setup: other fields of :class:`tether.language.models.from_run.Setup`.

    Returns:
        The rounds, and a last one that measures the last policy.

    Raises:
        UserError: anything that the user can correct; one line.
    """
    settings = settings or RoundSettings.load({})
    first = Setup.load({**setup, "model": model, "data": data})
    rewards = GivenRewards.of([] if teacher == HUMAN else teacher)
    # A mistake in any of these is found before a folder is made.
    source = _opened(first, settings, rewards)
    scorer = _scorer(source, rewards)
    folder = Path(out)
    _begin(folder, first, settings, rewards)
    found: list[Round] = []
    policy: Path | None = None
    with Store.open(folder / STORE_FILE) as store:
        store.note("goal", settings.rounds * settings.comparisons)
        for number in range(settings.rounds + 1):
            if policy is not None:
                source = _opened(replace_model(first, policy), settings, rewards)
                scorer = _scorer(source, rewards)
            answers = _sampled(source, settings, first.seed, number)
            score = _mean_score(scorer, answers)
            if number < settings.rounds:
                queries = _ask(store, answers, number)
                _answered(store, queries, answers, scorer, settings, first.seed, poll_seconds)
            found.append(Round(number, score, store.counts().answered, policy))
            if on_round is not None:
                on_round(found[-1])
            if number < settings.rounds:
                place = folder / f"round-{number}"
                policy = _learned(place, store, first, settings, progress=progress)
    return found


def replace_model(setup: Setup, policy: Path) -> Setup:
    """The setup with a run's policy as its model, without an adapter of its own."""
    return Setup.load({**setup.dump(), "model": str(policy), "lora": None, "lora_alpha": None})


@dataclass(frozen=True)
class _Pair:
    texts: tuple[Text, Text]
    completions: tuple[Completion, Completion]


def _opened(setup: Setup, settings: RoundSettings, rewards: GivenRewards) -> ModelAndData:
    def reads_prompts(prompts: Any, completions: Any) -> None:
        """Makes the prompts be kept as they were written."""

    config = METHODS["rlhf"].load().config_class.load({"max_new_tokens": settings.max_new_tokens})
    assert setup.data is not None
    functions = [RewardFunction(reads_prompts), *rewards.functions]
    return prepare(METHODS["rlhf"], setup, setup.data, config, None, functions)


def _scorer(source: ModelAndData, rewards: GivenRewards) -> Scorer | None:
    if not rewards.names:
        return None
    return open_scorer(RewardSettings.load({}), source.language_model, rewards, source.rows)


def _begin(folder: Path, setup: Setup, settings: RoundSettings, rewards: GivenRewards) -> None:
    asked: dict[str, Any] = {
        "setup": setup.dump(),
        "settings": settings.dump(),
        "teacher": list(rewards.names) or [HUMAN],
    }
    file = folder / SETTINGS_FILE
    if file.exists():
        try:
            known = json.loads(file.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise RunError(f"{file} cannot be read: {error}") from error
        # More rounds may be added to those there are.
        known["settings"]["rounds"] = asked["settings"]["rounds"]
        for part, value in asked.items():
            if known.get(part) != json.loads(json.dumps(value)):
                raise RunError(
                    f"folder {folder} was begun with another {part}; give the same command again, "
                    "or choose another --out"
                )
    elif folder.exists() and any(folder.iterdir()):
        raise RunError(f"folder {folder} is not empty; choose another --out")
    else:
        folder.mkdir(parents=True, exist_ok=True)
        write_json(file, asked)


def _sampled(source: ModelAndData, settings: RoundSettings, seed: int, number: int) -> list[_Pair]:
    """Two different answers to each of some prompts; decided by the seed, the policy, the round."""
    prompts = len(source.data)
    generator = np.random.default_rng(seed_sequence(seed, Stream.COMPARED_ANSWERS, number))
    passes = -(-settings.comparisons // prompts)
    order = np.concatenate([generator.permutation(prompts) for _ in range(passes)])
    chosen = [int(row) for row in order[: settings.comparisons]]
    tried: list[list[Completion]] = [[] for _ in chosen]
    # A pair of equal answers is sampled again, a few times.
    for attempt in range(_TRIES):
        wanting = [i for i in range(len(chosen)) if _different(source, tried[i]) is None]
        if not wanting:
            break
        for member in range(2 if attempt == 0 else 1):
            key = attempt + member
            sampled = generate(
                source.language_model,
                [source.data[chosen[i]].prompt_ids for i in wanting],
                max_new_tokens=settings.max_new_tokens,
                temperature=settings.temperature,
                seeds=[
                    derived_seed(seed, Stream.COMPARED_ANSWERS, number, i, key) for i in wanting
                ],
            )
            for i, completion in zip(wanting, sampled, strict=True):
                tried[i].append(replace(completion, row=chosen[i]))
    found = [_different(source, completions) for completions in tried]
    pairs = [pair for pair in found if pair is not None]
    if not pairs:
        raise UserError(
            "the model gives the same answer to every prompt twice, so there is nothing to "
            "compare; raise --temperature or --max-new-tokens"
        )
    return pairs


def _different(source: ModelAndData, completions: Sequence[Completion]) -> _Pair | None:
    texts = [(_text(source, one), one) for one in completions]
    good = [(text, one) for text, one in texts if text is not None]
    for text, one in good[1:]:
        if text != good[0][0]:
            return _Pair((good[0][0], text), (good[0][1], one))
    return None


def _text(source: ModelAndData, completion: Completion) -> Text | None:
    decode = source.language_model.tokenizer.decode
    answer = decode(list(completion.completion_ids), skip_special_tokens=True)
    if not answer.strip():
        return None
    if source.rows is None or completion.row is None:
        return Text(decode(list(completion.prompt_ids), skip_special_tokens=True), answer)
    prompt: Any = source.rows.prompt(completion.row)
    return Text(prompt, answer)


def _mean_score(scorer: Scorer | None, pairs: Sequence[_Pair]) -> float | None:
    if scorer is None:
        return None
    scores = np.asarray(scorer([one for pair in pairs for one in pair.completions]), np.float64)
    return float(scores.mean())


def _ask(store: Store, pairs: Sequence[_Pair], number: int) -> list[Query]:
    store.add_items(text for pair in pairs for text in pair.texts)
    queries = [
        Query(
            tuple(text.id for text in pair.texts),
            source="first model" if number == 0 else f"policy of round {number - 1}",
            step=number,
            nonce=f"round {number}, {place}",
        )
        for place, pair in enumerate(pairs)
    ]
    store.add_queries(queries)
    return queries


def _answered(
    store: Store,
    queries: list[Query],
    pairs: Sequence[_Pair],
    scorer: Scorer | None,
    settings: RoundSettings,
    seed: int,
    poll_seconds: float,
) -> None:
    """Has the queries answered, or waits until people have."""
    if scorer is None:
        while len(store.standing_answers([query.id for query in queries])) < len(queries):
            time.sleep(poll_seconds)
        return
    completion_of = {
        text.id: completion
        for pair in pairs
        for text, completion in zip(pair.texts, pair.completions, strict=True)
    }

    def score(items: Sequence[Item]) -> Sequence[float]:
        scores = scorer([completion_of[item.id] for item in items])
        return [float(one) for one in np.asarray(scores, np.float64)]

    oracle = OracleTeacher(seed, beta=settings.beta, mistake=settings.mistake, reward=score)
    shown = [(query, pair.texts) for query, pair in zip(queries, pairs, strict=True)]
    store.answer_all(answer for answer in oracle.answers(shown) if answer is not None)


def _given(**settings: Any) -> dict[str, Any]:
    """The settings without those that are left to the method's defaults."""
    return {name: value for name, value in settings.items() if value is not None}


def _learned(
    place: Path, store: Store, setup: Setup, settings: RoundSettings, *, progress: bool
) -> Path:
    """Trains the reward model and the policy of a round; returns the policy's run."""
    place.mkdir(exist_ok=True)
    pairs = place / "pairs.jsonl"
    if not pairs.exists():
        # People may go on answering; a run that is resumed must find the data it began with.
        export(store, "pairs", pairs)
    shared = {
        key: value
        for key, value in setup.dump().items()
        if key not in ("data", "split", "limit", "max_length", "max_prompt", "max_completion")
    }
    _trained(
        "reward",
        place / "reward",
        progress,
        data=str(pairs),
        epochs=settings.reward_epochs,
        **shared,
        **_given(batch_size=settings.batch_size, learning_rate=settings.reward_learning_rate),
    )
    _trained(
        "rlhf",
        place / "policy",
        progress,
        reward=str(place / "reward"),
        total_steps=settings.policy_steps,
        max_new_tokens=settings.max_new_tokens,
        **setup.dump(),
        **_given(
            batch_size=settings.batch_size,
            minibatch_size=settings.batch_size,
            learning_rate=settings.learning_rate,
        ),
    )
    return place / "policy"


def _trained(method: str, run: Path, progress: bool, **arguments: Any) -> None:
    if (run / "run.json").exists():
        training.ENGINE.resume(run, progress=progress)
    else:
        training.ENGINE.train(method, out=run, progress=progress, **arguments)

"""The command best-of-n: what a model could say, if only the best of n answers were kept."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass, make_dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import tyro
from numpy.typing import NDArray
from pydantic import Field

from tether.arguments import parse, print_json, say
from tether.errors import UserError
from tether.language.data.sources import MOVIE_REVIEWS
from tether.language.methods import METHODS
from tether.language.methods import best_of_n as sampling
from tether.language.methods.rlhf.given_rewards import GivenRewards
from tether.language.methods.rlhf.reward_settings import SENTIMENT, RewardSettings
from tether.language.methods.rlhf.rewards import check_readable, open_scorer
from tether.language.models.from_run import Setup
from tether.language.runs.prepare import ModelAndData, prepare
from tether.language.runs.rewards import recorded_in
from tether.language.runtime.out_of_memory import explaining_out_of_memory
from tether.learning.output.progress import open_progress
from tether.learning.storage.durable import check_new_file, replaced, write_error

_PROMPTS = 64


class BestOfNConfig(RewardSettings):
    """Settings of best-of-n."""

    n: int = Field(16, ge=1)
    """Answers sampled for each prompt. More answers score higher and move further from the model
    (usual: 4 to 128)."""
    gold: str | None = None
    """What the chosen answers are really worth: named like a reward, and never used to choose. For
    film reviews it is sentiment if not given."""
    reward_variance_weight: float = Field(0.5, ge=0)
    """The weight of the variance between rewards. Raising it lowers scores where the
    rewards disagree (usual: 0.1 for PPO, 0.5 for best-of-n)."""
    max_new_tokens: int = Field(32, ge=1)
    """The most tokens an answer may have, including the end-of-sequence token."""
    temperature: float = Field(1.0, gt=0)
    """The logits are divided by this; answers differ less below 1."""
    generation_batch_size: int = Field(64, ge=1)
    """Answers generated at once. More is faster and needs more memory; the answers stay the
    same."""


@dataclass(frozen=True)
class Options:
    """Where the answers go."""

    out: Path = Path("best-of-n.jsonl")
    """A new file, one line for each prompt: prompt, completion, score, gold, and all n scores."""
    json: bool = False
    """Print one JSON object as the last line of stdout."""
    quiet: bool = False
    """Print no table."""


def best_of_n(arguments: Sequence[str]) -> None:
    """`tether best-of-n`."""
    command = make_dataclass(
        "BestOfN",
        [
            ("options", Annotated[Options, tyro.conf.arg(name="answers")]),
            ("setup", Annotated[Setup, tyro.conf.arg(name="model and data")]),
            ("settings", Annotated[BestOfNConfig, tyro.conf.arg(name="best-of-n")]),
        ],
        frozen=True,
    )
    default = command(Options(), Setup.load({"limit": _PROMPTS}), BestOfNConfig.load({}))
    command.__doc__ = "Answer each prompt n times and keep the answer that scores best."
    parsed: Any = parse(command, arguments, prog="tether best-of-n", default=default)
    options, setup, config = parsed.options, parsed.setup, parsed.settings
    check_new_file(options.out)
    if setup.data is None:
        raise UserError("data is none; expected movie-reviews, a file, or a hub id")
    rewards = GivenRewards.of(config.reward)
    config, rewards = recorded_in(config, rewards, setup.data, {})
    reviews = setup.data == MOVIE_REVIEWS
    judges = GivenRewards.of([config.gold or SENTIMENT] if config.gold or reviews else [])
    functions = [*rewards.functions, *judges.functions]
    source = prepare(METHODS["rlhf"], setup, setup.data, config, None, functions)
    total = config.n * len(source.data)
    progress = open_progress(total, 0, metric="", show=not options.quiet, unit="answers")
    with explaining_out_of_memory(config, lambda: f"with n {config.n}"), closing(progress):
        best, gold = sample(source, config, rewards, judges, seed=setup.seed, on_batch=progress.at)
    write(options.out, source, best, gold)
    curve = by_number(best, gold)
    if not options.quiet:
        _tell(curve)
    worth = "" if gold is None else f", gold {curve[-1]['gold']:.4g}"
    say(
        f"best of {config.n} for {len(best.completions):,} prompts: reward "
        f"{curve[-1]['reward']:.4g}{worth}, at most {curve[-1]['kl']:.4g} nats from the model; "
        f"answers: {options.out}"
    )
    if options.json:
        summary = {"out": str(options.out), "model": setup.model, "prompts": len(best.completions)}
        print_json({**summary, **curve[-1], "curve": curve})


def sample(
    source: ModelAndData,
    config: BestOfNConfig,
    rewards: GivenRewards,
    judges: GivenRewards,
    *,
    seed: int = 0,
    on_batch: Callable[[int], None] | None = None,
) -> tuple[sampling.BestOfN, NDArray[np.float64] | None]:
    """Samples n answers to each prompt, chooses, and asks what all of them are really worth.

    Args:
        source: a model and prompts.
        config: the settings.
        rewards: what chooses.
        judges: what the answers are really worth: one reward, or none.
        seed: decides the answers.
        on_batch: called with the number of answers that are sampled, after each batch.

    Returns:
        The answers, and their gold scores, (P, n), or None without any.
    """
    model = source.language_model
    prompts = [record.prompt_ids for record in source.data]
    scorer = open_scorer(config, model, rewards, source.rows)
    alone = RewardSettings(reward_timeout=config.reward_timeout)
    judge = open_scorer(alone, model, judges, source.rows) if judges.names else None
    longest = max(map(len, prompts)) + config.max_new_tokens
    for reader in (scorer, judge):
        if reader is not None:
            check_readable(reader, model, longest)
    best = sampling.best_of_n(
        model,
        prompts,
        scorer,
        config.n,
        max_new_tokens=config.max_new_tokens,
        temperature=config.temperature,
        seed=seed,
        batch_size=config.generation_batch_size,
        on_batch=on_batch,
    )
    if judge is None:
        return best, None
    answers = [answer for row in best.candidates for answer in row]
    return best, np.asarray(judge(answers), np.float64).reshape(best.candidate_scores.shape)


def by_number(
    best: sampling.BestOfN, gold: NDArray[np.float64] | None
) -> list[dict[str, float | int | None]]:
    """What best of 1, 2, 4, ... n would get, each estimated from all the answers.

    Returns:
        For each number ``n``, ``kl`` (bound in nats), ``reward`` and ``gold`` (means over prompts).
    """
    scores = best.candidate_scores
    most = scores.shape[1]
    numbers = sorted({*(2**k for k in range(most.bit_length())), most})
    return [
        {
            "n": n,
            "kl": float(sampling.best_of_n_kl(n)),
            "reward": float(sampling.expected_best_of_n(scores, n).mean()),
            "gold": None
            if gold is None
            else float(sampling.expected_best_of_n(scores, n, gold).mean()),
        }
        for n in numbers
    ]


def write(
    path: Path, source: ModelAndData, best: sampling.BestOfN, gold: NDArray[np.float64] | None
) -> None:
    """Writes the winners as JSON lines, which `tether sft` can learn from.

    Raises:
        UserError: the file cannot be written.
    """
    decode = source.language_model.tokenizer.decode
    winners = best.candidate_scores.argmax(axis=1)
    lines = []
    for index, (item, place) in enumerate(zip(best.completions, winners, strict=True)):
        row: dict[str, Any] = {
            "prompt": decode(list(item.prompt_ids), skip_special_tokens=True),
            "completion": decode(list(item.completion_ids), skip_special_tokens=True),
            "score": float(best.scores[index]),
            "gold": None if gold is None else float(gold[index, place]),
            "scores": best.candidate_scores[index].tolist(),
            "finished": item.finished,
        }
        lines.append(json.dumps(row, ensure_ascii=False) + "\n")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with replaced(path) as file:
            file.write("".join(lines).encode())
    except OSError as error:
        raise write_error(path, error) from error


def _tell(curve: Sequence[dict[str, Any]]) -> None:
    say(f"{'n':>6} {'KL at most':>11} {'reward':>9} {'gold':>9}")
    for row in curve:
        gold = "" if row["gold"] is None else f"{row['gold']:9.3f}"
        say(f"{row['n']:6d} {row['kl']:11.3f} {row['reward']:9.3f} {gold:>9}")

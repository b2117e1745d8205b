"""The losses of DPO and its relatives on B records, and what is measured beside them."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import ClassVar, Literal, NamedTuple

import torch
from pydantic import Field
from torch import Tensor

from tether import objectives
from tether.errors import UserError
from tether.language.data.tokens import Completion, Judgement, Pair
from tether.language.learners.means import Means
from tether.language.learners.preference_learner import PreferenceConfig
from tether.learning.config import When

LabelledRecord = Pair | Judgement
"""What there is to learn from: two completions compared, or for kto also one judged."""

logger = logging.getLogger(__name__)

Loss = Literal["dpo", "ipo", "simpo", "orpo", "kto", "unlikelihood", "preferred_ft"]


class DPOConfig(PreferenceConfig):
    """Settings of DPO and its relatives."""

    applies: ClassVar[dict[str, When]] = {
        "beta": When("loss", ("dpo", "ipo", "kto", "simpo")),
        "ipo_normalization": When("loss", "ipo"),
        "gamma": When("loss", "simpo"),
        "orpo_lambda": When("loss", "orpo"),
        "desirable_weight": When("loss", "kto"),
        "undesirable_weight": When("loss", "kto"),
        "unlikelihood_alpha": When("loss", "unlikelihood"),
        "precompute_reference": When("loss", ("dpo", "ipo", "kto")),
        "keep_reference": When("loss", ("dpo", "ipo", "kto")),
    }

    batch_size: int = Field(32, ge=1)
    """Pairs in a gradient step (usual: 32 to 128)."""
    learning_rate: float = Field(5e-6, gt=0)
    """AdamW's largest step size (usual: 5e-7 to 1e-5; with LoRA 1e-5 to 1e-4; for very small models
    1e-4). With too large a step both completions become improbable."""
    warmup: float = Field(0.1, ge=0, le=1)
    """Share of the run in which the step size rises from zero."""
    loss: Loss = "dpo"
    """The loss to minimize. dpo, ipo and kto compare with a reference model; simpo and orpo have
    none; unlikelihood and preferred_ft (fine-tuning on the better completions) are the baselines of
    the DPO paper."""
    beta: float | None = Field(None, gt=0)
    """The strength of the KL constraint to the reference. Raising it keeps the model closer to the
    reference (usual: 0.01 to 0.5 for dpo and kto, 0.01 to 1 for ipo; for simpo, where it only
    scales the reward, 2 to 10). 0.1 if not given, for simpo 2."""
    label_smoothing: float = Field(0.0, ge=0, lt=0.5)
    """The probability that a label is wrong. Raising it makes each pair count less (usual: 0 to
    0.3)."""
    ipo_normalization: Literal["sum", "mean"] = "sum"
    """For ipo: whether log-ratios are summed over tokens, as in the paper, or averaged, which makes
    them independent of the length."""
    gamma: float = Field(1.0, ge=0)
    """For simpo: the margin by which the better completion should win (usual: 0.1 to 0.8 times
    beta)."""
    orpo_lambda: float = Field(0.1, gt=0)
    """For orpo: the weight of the odds ratio beside the likelihood (usual: 0.05 to 1)."""
    desirable_weight: float = Field(1.0, ge=0)
    """For kto: the weight of the better completions. The weight times the number of better
    completions should be 1 to 4/3 of the same product for the worse ones."""
    undesirable_weight: float = Field(1.0, ge=0)
    """For kto: the weight of the worse completions."""
    unlikelihood_alpha: float = Field(1.0, ge=0, le=1)
    """For unlikelihood: the weight of the worse completions. Raising it damages the language
    sooner."""
    precompute_reference: bool = True
    """Computes the reference's log-probabilities of all pairs before the first update, so that no
    second copy of the model is kept; otherwise they are computed when a pair is first used."""
    keep_reference: bool = False
    """Keeps the reference's log-probabilities in the user's cache folder, for other runs on the
    same model and data."""

    @property
    def strength(self) -> float:
        """Beta, with its default."""
        return self.beta if self.beta is not None else 2.0 if self.loss == "simpo" else 0.1


class Scores(NamedTuple):
    """What policy and reference think of B records.

    Each (B, 2): the first and the second completion; of single completions (B, 1).
    """

    log_prob: Tensor
    """log pi(y|x), summed over tokens."""
    length: Tensor
    """Tokens."""
    reference: Tensor | None
    """log ref(y|x), summed over tokens; None where the loss has no reference."""


def pair_loss(
    config: DPOConfig, scores: Scores, label: Tensor, reference_point: Tensor
) -> tuple[Tensor, Tensor]:
    """The chosen loss of B records, and the rewards it sees in their completions.

    Args:
        config: says which loss; single completions are for kto.
        scores: of policy and reference.
        label: probability that the first completion is better, or the single one good; (B,).
        reference_point: kto's z, a scalar.

    Returns:
        The sum over records of the loss, and rewards, of the scores' shape: beta times the
        log-ratio; for simpo beta times the mean log-probability, for orpo that itself, for the
        likelihood losses the sum.
    """
    beta, smoothing = config.strength, config.label_smoothing
    summed = scores.log_prob
    ratio = summed if scores.reference is None else summed - scores.reference
    mean = summed / scores.length
    loss: Tensor
    if config.loss == "dpo":
        loss = objectives.dpo(*_both(ratio), beta, label, smoothing, reduction="sum")
        return loss, beta * ratio
    if config.loss == "ipo":
        ratio = ratio / scores.length if config.ipo_normalization == "mean" else ratio
        loss = objectives.ipo(*_both(ratio), beta, label, smoothing, reduction="sum")
        return loss, beta * ratio
    if config.loss == "kto":
        return _kto(config, ratio, label, reference_point), beta * ratio
    if config.loss == "simpo":
        loss = objectives.simpo(*_both(mean), beta, config.gamma, label, smoothing, reduction="sum")
        return loss, beta * mean
    if config.loss == "orpo":
        strength = config.orpo_lambda
        loss = objectives.orpo(*_both(mean), strength, label, smoothing, reduction="sum")
        return loss, mean
    alpha = 0.0 if config.loss == "preferred_ft" else config.unlikelihood_alpha
    loss = objectives.unlikelihood(*_both(summed), alpha, label, smoothing, reduction="sum")
    return loss, summed


def _both(values: Tensor) -> tuple[Tensor, Tensor]:
    return values[:, 0], values[:, 1]


def _kto(config: DPOConfig, ratio: Tensor, label: Tensor, reference_point: Tensor) -> Tensor:
    """A pair is two judgements: its first completion was liked with p, its second with 1 - p."""
    smoothing, count = config.label_smoothing, ratio.shape[1]
    label = label * (1.0 - 2.0 * smoothing) + smoothing
    total: Tensor = objectives.kto(
        ratio,
        torch.stack([label, 1.0 - label], dim=1)[:, :count],
        reference_point,
        config.strength,
        desirable_weight=config.desirable_weight,
        undesirable_weight=config.undesirable_weight,
        reduction="sum",
    )
    return total / count


def measure(means: Means, scores: Scores, reward: Tensor, labels: Sequence[float]) -> None:
    """Adds rewards, their accuracy and margin, log-probabilities, divergence and length of B pairs.

    Accuracy and margin are taken over pairs that are no ties; equal rewards have guessed.
    """
    count = len(labels)
    sign = torch.tensor(labels, device=reward.device).sub(0.5).sign()
    for name, values in (("reward", reward), ("logprob", scores.log_prob)):
        # The worse completion may come first.
        swapped = torch.where(sign[:, None] < 0, values.flip(1), values).detach()
        means.add(f"{name}/chosen", swapped[:, 0].sum(), count)
        means.add(f"{name}/rejected", swapped[:, 1].sum(), count)
    margin = (reward[:, 0] - reward[:, 1]).detach() * sign
    right = (margin > 0).to(margin.dtype) + 0.5 * (margin == 0)
    decided = sum(label != 0.5 for label in labels)
    means.add("reward/accuracy", (right * sign.abs()).sum(), decided)
    means.add("reward/margin", margin.sum(), decided)
    if scores.reference is not None:
        gap = scores.reference - scores.log_prob
        means.add("kl/reverse", objectives.kl_k1(gap).sum(), 2 * count)
    means.add("tokens/length", scores.length.sum(), 2 * count)


def measure_single(
    means: Means, scores: Scores, reward: Tensor, labels: Sequence[float], threshold: Tensor
) -> None:
    """Adds what :func:`measure` does, of B single completions.

    ``chosen`` are those found good, ``rejected`` those found bad; a verdict of 0.5 is in neither.
    Accuracy is the share of them on their side of `threshold`, kto's beta z: whoever stands there
    has guessed.
    """
    reward, log_prob = reward[:, 0].detach(), scores.log_prob[:, 0].detach()
    sign = torch.tensor(labels, device=reward.device).sub(0.5).sign()
    for name, side in (("chosen", 1), ("rejected", -1)):
        there = sign == side
        count = sum((label > 0.5) - (label < 0.5) == side for label in labels)
        means.add(f"reward/{name}", torch.where(there, reward, 0.0).sum(), count)
        means.add(f"logprob/{name}", torch.where(there, log_prob, 0.0).sum(), count)
    beyond = (reward - threshold) * sign
    right = (beyond > 0).to(beyond.dtype) + 0.5 * (beyond == 0)
    decided = sum(label != 0.5 for label in labels)
    means.add("reward/accuracy", (right * sign.abs()).sum(), decided)
    if scores.reference is not None:
        gap = scores.reference[:, 0] - log_prob
        means.add("kl/reverse", objectives.kl_k1(gap).sum(), len(labels))
    means.add("tokens/length", scores.length.sum(), len(labels))


def check_records_of(config: DPOConfig, records: Sequence[LabelledRecord]) -> None:
    """Checks that the loss can learn from the records, and warns where it would lean to one side.

    Raises:
        UserError: single completions for a loss that compares, or both kinds of record.
    """
    single = [record for record in records if isinstance(record, Judgement)]
    if not single:
        return
    if config.loss != "kto":
        raise UserError(
            f"loss is {config.loss}, which compares two completions, and the data judge single "
            "ones; expected kto"
        )
    if len(single) < len(records):
        raise UserError("the data hold both pairs and single completions; expected one kind")
    good = sum(record.label for record in single)
    liked, disliked = good, len(single) - good
    balance = (config.desirable_weight * liked, config.undesirable_weight * disliked)
    # The paper's bounds are 1 and 4/3; a little beyond does no harm.
    if not 0.9 * balance[1] <= balance[0] <= 1.5 * balance[1]:
        logger.warning(
            "warning: %.0f completions are good and %.0f bad, with weights %g and %g; kto learns "
            "best where desirable_weight times their number is 1 to 4/3 of the other product",
            *(liked, disliked, config.desirable_weight, config.undesirable_weight),
        )


def mismatched(
    records: Sequence[LabelledRecord], pool: Sequence[LabelledRecord], *, context: int
) -> list[Completion]:
    """For each record, its prompt beside a completion that belongs to another prompt.

    Args:
        records: whose prompts to take.
        pool: whose completions to take; better and worse ones in turn.
        context: most tokens together; a completion is cut to fit.

    Raises:
        UserError: all of `pool` have one prompt.

    Source:
        Ethayarajh et al., KTO (2024), section 4.1.
    """
    size = len(pool)
    # following[i]: the next place after i, around the end, with another prompt than i's.
    following: list[int | None] = [None] * (2 * size)
    for i in range(2 * size - 2, -1, -1):
        here, after = pool[i % size].prompt_ids, pool[(i + 1) % size].prompt_ids
        following[i] = i + 1 if after != here else following[i + 1]
    items = []
    for index, record in enumerate(records):
        place: int | None = (index + 1) % size
        if pool[(index + 1) % size].prompt_ids == record.prompt_ids:
            place = following[(index + 1) % size]
        if place is None:
            raise UserError(
                "kto compares prompts with other prompts' completions, and all records have the "
                "same prompt; give records of at least two, or pairs with loss dpo"
            )
        others = pool[place % size].as_completions()
        ids = others[(index + 1) % len(others)].completion_ids
        items.append(Completion(record.prompt_ids, ids[: context - len(record.prompt_ids)]))
    return items

"""Reward models, from comparisons of two completions or rankings of K.

    for each batch of B records:
        s = scores of all their completions                (one forward pass per completion)
        pair:     L = - p log sigmoid(s_1 - s_2) - (1 - p) log sigmoid(s_2 - s_1)
        ranking:  L = - sum over pairs i < j of log sigmoid(s_i - s_j) / C(K, 2)
        one AdamW step along the gradient of the mean of L

A ranking is one element of the batch with all its pairs: they are correlated, and would over-fit
as elements of their own.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, Self

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field, model_validator
from torch import Tensor, nn

from tether import objectives
from tether.errors import UserError
from tether.language.data.tokens import Completion, Pair
from tether.language.learners.means import Means
from tether.language.learners.preference_learner import (
    ComparisonRecord,
    PreferenceConfig,
    PreferenceLearner,
    read_length,
)
from tether.language.learners.splitting import micro_batches
from tether.language.models.ensemble import VARIANCE_WEIGHT, Combine
from tether.language.models.reward_model import RewardModel
from tether.learning.config import Config, When
from tether.learning.learner import Metrics, State
from tether.learning.seeding import Stream, generator

__all__ = ["RewardConfig", "RewardLearner", "RewardModel", "expected_calibration_error"]


class RewardConfig(PreferenceConfig):
    """Settings of reward models."""

    applies: ClassVar[dict[str, When | tuple[When, ...]]] = {
        "combine": When("members", unless=1),
        "variance_weight": (When("members", unless=1), When("combine", "mean-variance")),
    }

    label_noise: float = Field(0.0, ge=0, lt=1)
    """The probability with which an answer is taken to be random; it limits how much a single
    comparison can change (0.1 in Christiano et al. 2017; 0 for rankings)."""
    members: int = Field(1, ge=1)
    """The number of models in the ensemble. Each has its own head and its own order of the data,
    and with LoRA its own adapter. More members estimate the uncertainty better and take
    proportionally longer (usual: 1 to 5)."""
    bootstrap: bool = False
    """Gives each member its own sample of the data, drawn with replacement, so that the members
    disagree more."""
    combine: Combine = "mean"
    """How the members' scores become one: their mean; the lowest, which is harder to over-optimize;
    or mean-variance, the mean minus variance_weight times their variance."""
    variance_weight: float = Field(VARIANCE_WEIGHT, ge=0)
    """The weight of the members' variance. Raising it lowers scores where the members disagree
    (usual: 0.1 for PPO, 0.5 for best-of-n)."""
    normalize_samples: int = Field(256, ge=0)
    """The number of completions of the data whose scores are shifted and scaled to mean 0 and
    standard deviation 1 when training ends; 0 leaves the scores as they are."""

    @model_validator(mode="after")
    def _enough_samples(self) -> Self:
        if self.normalize_samples == 1:
            raise ValueError("normalize_samples=1 has no deviation; expected 0, or at least 2")
        return self


class RewardLearner(PreferenceLearner[ComparisonRecord]):
    """Learns a reward model from pairs and rankings.

    Attributes:
        reward_model: what is learned; usable at any time.

    Source:
        InstructGPT (Ouyang et al. 2022), equation 1; Christiano et al., "Deep reinforcement
        learning from human preferences" (2017), section 2.2.3, for noise and ensembles.
    """

    config: RewardConfig
    config_class: ClassVar[type[Config]] = RewardConfig

    def init(self) -> None:
        """Puts heads and members on the language model."""
        config = self.config
        if config.label_noise and not all(isinstance(record, Pair) for record in self.data):
            raise UserError(
                f"label_noise is {config.label_noise}, which is for comparisons of two; the data "
                "hold rankings: expected 0"
            )
        self.reward_model = RewardModel(
            self.language_model,
            members=config.members,
            combine=config.combine,
            variance_weight=config.variance_weight,
            seed=self.seed,
        )
        self.modules["heads"] = self.reward_model.heads
        self._samples: list[NDArray[np.int64]] = [
            generator(self.seed, Stream.BOOTSTRAP, member).integers(
                len(self.data), size=len(self.data)
            )
            if config.bootstrap
            else np.arange(len(self.data))
            for member in range(config.members)
        ]

    @property
    def members(self) -> int:
        """Models of the ensemble."""
        return self.config.members

    def groups(self) -> list[list[nn.Parameter]]:
        """One optimizer for each member, or for the trunk that they share."""
        return self.reward_model.groups()

    def accumulate(self, member: int, rows: Sequence[int], means: Means) -> int:
        """Adds the gradient of a batch's mean loss."""
        records = [self.data[self._samples[member][row]] for row in rows]
        lengths = [read_length(record) for record in records]
        # A shared trunk follows the mean of its members, or it would be clipped sooner than one's.
        sharing = 1 if self.reward_model.adapters else self.members
        for places in micro_batches(lengths, self.config.micro_batch_size):
            group = [records[place] for place in places]
            batch = self.layout([record.as_completions() for record in group])
            scores = self.reward_model.raw(batch, member)
            comparisons = Comparisons(group, scores)
            loss = comparisons.loss(self.config.label_noise)
            (loss / (len(records) * sharing)).backward()  # type: ignore[no-untyped-call]
            means.add("loss", loss, len(group))
            comparisons.measure(means)
            means.add("reward/mean", scores.sum(), len(scores))
            means.add("tokens/length", batch.mask.sum(), batch.completions)
        return sum(lengths)

    def numbered(self, member: int, row: int) -> int:
        """Where in `data` a member's row is: its sample's."""
        return int(self._samples[member][row])

    @torch.no_grad()
    def evaluate(self, records: Sequence[ComparisonRecord]) -> Metrics:
        """Loss, accuracy, margin and calibration of the members' mean, on other comparisons.

        Returns:
            ``loss``; ``reward/accuracy``, ``reward/margin``; ``reward/calibration_error``, the
            expected calibration error of sigmoid(margin); with several members also
            ``reward/disagreement``, the deviation of their margins.
        """
        groups = [record.as_completions() for record in records]
        flat = [completion for group in groups for completion in group]
        scores = self.reward_model.member_scores(
            flat, batch_size=self.config.micro_batch_size, raw=True
        )
        comparisons = Comparisons(records, torch.from_numpy(scores.mean(axis=1)))
        means = Means()
        means.add("loss", comparisons.loss(self.config.label_noise), len(records))
        comparisons.measure(means)
        metrics = means.read()
        margins, labels, weights = comparisons.flat()
        metrics["reward/calibration_error"] = expected_calibration_error(
            1.0 / (1.0 + np.exp(-margins)), labels, weights
        )
        if self.members > 1:
            each = [Comparisons(records, torch.from_numpy(s)).flat()[0] for s in scores.T]
            metrics["reward/disagreement"] = float(
                np.average(np.std(each, axis=0), weights=weights)
            )
        return metrics

    def finish(self) -> None:
        """Normalizes the scores on completions drawn from the data, good and bad alike."""
        if self.config.normalize_samples:
            items = drawn(self.data, self.config.normalize_samples, seed=self.seed)
            self.reward_model.normalize(items, batch_size=self.config.micro_batch_size)

    def method_state(self) -> State:
        """Gain and bias."""
        return self.reward_model.normalization()

    def restore_method(self, state: State) -> None:
        """Undoes :meth:`method_state`."""
        saved: Any = state
        self.reward_model.gain = np.array(saved["gain"], np.float64)
        self.reward_model.bias = np.array(saved["bias"], np.float64)


class Comparisons:
    """Records and the scores of their completions, as B rows of at most K places, best first."""

    def __init__(self, records: Sequence[ComparisonRecord], scores: Tensor) -> None:
        """Lays scores out.

        Args:
            records: B pairs or rankings.
            scores: of all their completions, one record after another; (I,).
        """
        sizes = [len(record.as_completions()) for record in records]
        there = np.arange(max(sizes)) < np.array(sizes)[:, None]
        places = np.where(there, np.cumsum(there).reshape(there.shape) - 1, 0)
        labels = [r.label if isinstance(r, Pair) else 1.0 for r in records]
        device = scores.device
        self.scores = scores[torch.from_numpy(places).to(device)]
        self.there = torch.from_numpy(there).to(device)
        self.is_pair = torch.tensor([isinstance(r, Pair) for r in records], device=device)
        self.labels = torch.tensor(labels, dtype=scores.dtype, device=device)
        self._decided = sum(label != 0.5 for label in labels)
        self._any_pair = any(isinstance(r, Pair) for r in records)
        self._any_ranking = not all(isinstance(r, Pair) for r in records)

    def loss(self, noise: float = 0.0) -> Tensor:
        """The sum of the records' losses."""
        total = self.scores.new_zeros(())
        if self._any_pair:
            total = total + objectives.bradley_terry(
                self.scores[:, 0],
                self.scores[:, 1],
                self.labels,
                self.is_pair,
                noise=noise,
                reduction="sum",
            )
        if self._any_ranking:
            ranked = self.there & ~self.is_pair[:, None]
            total = total + objectives.k_wise(self.scores, ranked, reduction="sum")
        return total

    def measure(self, means: Means) -> None:
        """Adds ``reward/accuracy`` and ``reward/margin``, over records that are no ties."""
        margins, pairs = self._margins()
        sign = torch.sign(self.labels - 0.5)[:, None, None]
        margins = margins.detach() * sign
        # Equal scores have guessed.
        right = (margins > 0).to(margins.dtype) + 0.5 * (margins == 0)
        weight = pairs * sign.abs() / pairs.sum((1, 2), keepdim=True)
        means.add("reward/accuracy", (right * weight).sum(), self._decided)
        means.add("reward/margin", (margins * weight).sum(), self._decided)

    def flat(self) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
        """Margins s_i - s_j of all pairs i < j, their labels, and their weights 1 / C(K, 2)."""
        margins, pairs = self._margins()
        weights = pairs / pairs.sum((1, 2), keepdim=True)
        labels = self.labels[:, None, None].expand_as(pairs)
        chosen = pairs > 0
        parts = (
            part[chosen].detach().double().cpu().numpy() for part in (margins, labels, weights)
        )
        flat_margins, flat_labels, flat_weights = parts
        return flat_margins, flat_labels, flat_weights

    def _margins(self) -> tuple[Tensor, Tensor]:
        both = self.there[:, :, None] & self.there[:, None, :]
        margins = self.scores[:, :, None] - self.scores[:, None, :]
        return margins, both.triu(1).to(margins.dtype)


def expected_calibration_error(
    probability: NDArray[Any],
    label: NDArray[Any],
    weight: NDArray[Any] | None = None,
    *,
    bins: int = 10,
) -> float:
    """How far confidence is from correctness: sum_b w_b |correct_b - confidence_b|.

    Args:
        probability: predicted probability that the first is better, (N,).
        label: probability that it is, (N,).
        weight: of each comparison, (N,); None: equal.
        bins: equal intervals of the confidence max(p, 1 - p), which lies between 1/2 and 1.

    Returns:
        0 for a perfectly calibrated model; at most 1.

    Raises:
        UserError: nothing to average.

    Source:
        Guo et al., "On Calibration of Modern Neural Networks" (2017), equation 3.
    """
    if len(probability) == 0:
        raise UserError("the calibration error of no comparisons is undefined; give at least one")
    weight = np.ones(len(probability)) if weight is None else weight
    confidence = np.maximum(probability, 1.0 - probability)
    correct = np.where(probability >= 0.5, label, 1.0 - label)
    which = np.minimum(((confidence - 0.5) * 2 * bins).astype(int), bins - 1)
    gaps = np.bincount(which, weight * (correct - confidence), minlength=bins)
    return float(np.abs(gaps).sum() / weight.sum())


def drawn(records: Sequence[ComparisonRecord], count: int, *, seed: int) -> list[Completion]:
    """Some completions of the records, all if there are no more.

    They are drawn at random: every so many of them could all be the better ones of their pairs.
    """
    items = [completion for record in records for completion in record.as_completions()]
    random = generator(seed, Stream.NORMALIZATION)
    chosen = random.choice(len(items), min(count, len(items)), replace=False)
    return [items[place] for place in np.sort(chosen).tolist()]

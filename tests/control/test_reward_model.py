"""The reward model: what it learns, from which answers, and how its outputs are normalized."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from scipy.stats import kendalltau, spearmanr

from tether.control.preferences.comparisons import Compared, Comparisons
from tether.control.preferences.reward_model import RewardModel, RewardSettings, adapted

WIDTH, STEPS = 6, 12
SMALL = RewardSettings(hidden=(32,), minibatch_size=16)


def answered(
    count: int,
    *,
    items: int = 2,
    members: int = 3,
    seed: int = 0,
    lengths: tuple[int, ...] = (STEPS,),
    wrong: float = 0.0,
) -> tuple[Comparisons, np.ndarray]:
    """Comparisons of random segments by a linear reward, and the reward's weights."""
    rng = np.random.default_rng(seed)
    weights = rng.standard_normal(WIDTH)
    data = Comparisons(items, STEPS, WIDTH, members=members, seed=seed, expected=count)
    new = []
    for i in range(count):
        segments = [
            np.float32(
                rng.standard_normal(WIDTH)
                + 0.5 * rng.standard_normal((int(rng.choice(lengths)), WIDTH))
            )
            for _ in range(items)
        ]
        sums = [float((s @ weights).sum()) for s in segments]
        label = float(sums[0] > sums[1]) if items == 2 else 1.0
        if rng.random() < wrong:
            label = 1 - label
        if items > 2:
            order = np.argsort(sums)[::-1]
            segments, sums = [segments[k] for k in order], [sums[k] for k in order]
        new.append(Compared(str(i), segments, label, sums))
    data.extend(new)
    return data, weights


def fitted(data: Comparisons, steps: int, settings: RewardSettings = SMALL) -> Any:
    model = RewardModel(settings, WIDTH, np.random.default_rng(1))
    model.watch(data.inputs[data.mask])
    inputs = np.float32(np.random.default_rng(2).standard_normal((500, WIDTH)))
    metrics = model.fit(data, steps, np.random.default_rng(3))
    return model, metrics, inputs


@pytest.mark.parametrize(
    ("items", "lengths", "settings"),
    [
        (2, (STEPS,), SMALL),
        (2, (3, 7, STEPS), SMALL),
        (4, (STEPS,), SMALL),
        (2, (STEPS,), SMALL._replace(regress=True)),
        (2, (STEPS,), SMALL._replace(dropout=0.1)),
    ],
    ids=["pairs", "lengths", "rankings", "returns", "dropout"],
)
def test_comparisons_recover_a_linear_reward_up_to_scale(
    items: int, lengths: tuple[int, ...], settings: RewardSettings
) -> None:
    data, weights = answered(300, items=items, lengths=lengths)
    model, _, inputs = fitted(data, 240, settings)
    truth = inputs @ weights
    assert spearmanr(model.normalized(model.raw(inputs)), truth).statistic > 0.93
    for member in model.raw(inputs):
        assert kendalltau(member, truth).statistic > 0.7


def test_a_sum_of_predictions_is_a_log_odds() -> None:
    """One step, one feature that is 0 or 1: 80 % of the answers prefer the 1.

    The best margin m has 0.9 sigmoid(m) + 0.05 = 0.8 (Christiano et al. 2017, section 2.2.3).
    """
    rng = np.random.default_rng(0)
    one, zero = np.ones((1, 1), np.float32), np.zeros((1, 1), np.float32)
    data = Comparisons(2, 1, 1, members=1, seed=0)
    data.extend(
        [Compared(str(i), [one, zero], float(rng.random() < 0.8), [1.0, 0.0]) for i in range(1000)]
    )
    drawn = np.repeat(data.label, data.draws[:, 0]).mean()
    model = RewardModel(
        RewardSettings(1, (16,), learning_rate=3e-3, l2=0.0), 1, np.random.default_rng(0)
    )
    model.watch(np.array([[0.0], [1.0]]))
    model.fit(data, 900, rng)
    margin = np.diff(model.raw(np.concatenate([zero, one]))[0])[0]
    assert 0.9 / (1 + np.exp(-margin)) + 0.05 == pytest.approx(drawn, abs=0.015)


def test_members_draw_with_replacement_and_hold_out_one_in_e() -> None:
    data, _ = answered(3000, members=4)
    assert np.abs((data.draws == 0).mean(axis=0) - np.exp(-1)).max() < 0.03
    assert np.abs(data.draws.sum(axis=0) / 3000 - 1).max() < 0.06
    correlation = np.corrcoef(data.draws.T) - np.eye(4)
    assert np.abs(correlation).max() < 0.06


def test_what_is_held_out_is_never_learned_from() -> None:
    data, _ = answered(50)
    order = data.order(np.random.default_rng(0), 40, 16)
    for m in range(3):
        seen = np.bincount(order[:, m].ravel(), minlength=50)
        assert not seen[data.draws[:, m] == 0].any()
        # Forty minibatches are many passes: what is drawn twice comes twice as often.
        assert np.corrcoef(seen, data.draws[:, m])[0, 1] > 0.98


def test_what_is_held_out_does_not_move_the_networks() -> None:
    data, _ = answered(60)
    changed, _ = answered(60)
    nobody = (data.draws == 0).all(axis=1)
    assert nobody.any()
    changed.label[nobody] = 1 - changed.label[nobody]
    outputs = [fitted(d, 10)[0].raw(np.ones((1, WIDTH), np.float32)) for d in (data, changed)]
    assert np.array_equal(*outputs)
    changed.label[~nobody] = 1 - changed.label[~nobody]
    moved = fitted(changed, 10)[0].raw(np.ones((1, WIDTH), np.float32))
    assert not np.array_equal(outputs[0], moved)


def test_a_comparison_keeps_its_draws_while_others_come_and_go() -> None:
    data, _ = answered(40)
    before = dict(zip(data.keys, data.draws.tolist(), strict=True))
    assert data.remove("7")
    assert not data.remove("7")
    data.extend([Compared("new", [data.inputs[0, 0], data.inputs[0, 1]], 1.0, [0.0, 0.0])])
    after = dict(zip(data.keys, data.draws.tolist(), strict=True))
    assert "7" not in after
    assert all(after[key] == before[key] for key in after if key != "new")
    count = len(data)
    data.extend([Compared("new", [data.inputs[0, 0], data.inputs[0, 1]], 0.0, [0.0, 0.0])])
    assert len(data) == count


def test_the_l2_coefficient_rises_with_overfitting_and_falls_without() -> None:
    l2 = np.full(4, 1e-3, np.float32)
    training = np.array([0.5, 0.5, 0.5, 0.5])
    validation = np.array([0.9, 0.65, 0.5, np.nan])
    moved = adapted(l2, training, validation)
    assert moved[0] > l2[0]
    assert moved[1] == l2[1]
    assert moved[2] < l2[2]
    assert moved[3] == l2[3]
    assert not adapted(np.zeros(4, np.float32), training, validation).any()


def test_l2_brings_an_overfitting_ensemble_back() -> None:
    """Half of the answers are a coin's toss, so whoever knows all of them has learned by heart."""
    data, _ = answered(80, wrong=0.4)
    eager = SMALL._replace(learning_rate=5e-3)
    free = fitted(data, 400, eager._replace(l2=0.0))[1]
    held = fitted(data, 400, eager)[1]
    assert free["reward/loss_ratio"] > 1.5
    assert held["reward/l2"] > eager.l2
    assert held["reward/loss_ratio"] < free["reward/loss_ratio"]
    assert held["reward/validation_loss"] < free["reward/validation_loss"]


def test_members_are_normalized_one_by_one_and_averaged() -> None:
    data, _ = answered(40)
    model, _, inputs = fitted(data, 10)
    outputs = model.raw(data.inputs[data.mask]).astype(float)
    mean, std = outputs.mean(axis=1)[:, None], outputs.std(axis=1)[:, None]
    expected = ((model.raw(inputs).astype(float) - mean) / std).mean(axis=0)
    assert model.rewards(inputs) == pytest.approx(expected, abs=1e-4)


def test_a_policy_that_hardly_moves_is_not_paid_for_noise() -> None:
    """Inputs that differ little have rewards that differ little, however many of them come."""
    data, _ = answered(40)
    model, _, inputs = fitted(data, 10)
    still = np.float32(1 + 0.01 * (inputs - 1))
    for _ in range(5):
        rewards = model.rewards(still)
    assert rewards.std() < 0.05
    assert model.rewards(data.inputs[data.mask]).std() > 0.5


def test_blocks_and_saving_change_nothing() -> None:
    data, _ = answered(40)
    model, _, inputs = fitted(data, 10)
    assert model.raw(inputs, 64) == pytest.approx(model.raw(inputs), abs=1e-5)
    other = RewardModel(SMALL, WIDTH, np.random.default_rng(5))
    other.restore(model.state())
    again = Comparisons(2, STEPS, WIDTH, members=3, seed=0, expected=40)
    again.restore(data.state())
    rngs = [np.random.default_rng(4) for _ in range(2)]
    assert model.fit(data, 10, rngs[0]) == other.fit(again, 10, rngs[1])
    assert np.array_equal(model.rewards(inputs), other.rewards(inputs))

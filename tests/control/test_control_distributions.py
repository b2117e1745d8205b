"""Every action space's distribution against SciPy or a sum over all its actions."""

import itertools
from collections.abc import Iterator

import jax
import numpy as np
import pytest
from gymnasium import spaces
from jax import numpy as jnp
from scipy import integrate, special, stats

from tether.control.distributions import ActionHead, action_head
from tether.errors import BadEnvironmentError

BATCH = 4
DISCRETE_SPACES = [
    spaces.Discrete(4),
    spaces.Discrete(3, start=-1),
    spaces.MultiDiscrete([3, 2, 4]),
    spaces.MultiDiscrete([[2, 3], [3, 2]]),
    spaces.MultiBinary(3),
    spaces.MultiBinary([2, 2]),
]
BOXES = [
    spaces.Box(-1.0, 1.0, (3,)),
    spaces.Box(-2.0, 0.5, (2, 2), np.float64),
    spaces.Box(-1.0, 1.0, (1,)),
]


def names(space: spaces.Space) -> str:
    return str(space).replace(" ", "")


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


def outputs(head: ActionHead, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Network outputs and log standard deviations in float64, so that truth needs no slack."""
    return 2 * rng.standard_normal((BATCH, head.outputs)), rng.uniform(-1, 0.5, head.scales)


def joint(head: ActionHead, logits: np.ndarray) -> dict[tuple[int, ...], float]:
    """The probability of every action of one row, multiplied out component by component."""
    if isinstance(head.space, spaces.MultiBinary):
        marginals = [np.array([1 - p, p]) for p in special.expit(logits)]
    else:
        stops = np.cumsum(head.sizes)[:-1]
        marginals = [special.softmax(block) for block in np.split(logits, stops)]
    return {
        choice: float(np.prod([p[i] for p, i in zip(marginals, choice, strict=True)]))
        for choice in itertools.product(*(range(len(p)) for p in marginals))
    }


@pytest.mark.parametrize("space", DISCRETE_SPACES, ids=names)
def test_discrete_spaces_against_enumeration(space: spaces.Space, rng: np.random.Generator) -> None:
    head = action_head(space)
    (first, scale), (second, _) = outputs(head, rng), outputs(head, rng)
    p, q = head.distribution(first, scale), head.distribution(second, scale)
    truths = [(joint(head, a), joint(head, b)) for a, b in zip(first, second, strict=True)]
    for row, (mine, other) in enumerate(truths):
        assert sum(mine.values()) == pytest.approx(1)
        for action, probability in mine.items():
            batch = np.tile(np.array(action, np.int32), (BATCH, 1))
            assert p.log_prob(batch)[row] == pytest.approx(np.log(probability), rel=1e-9)
        entropy = -sum(x * np.log(x) for x in mine.values())
        kl = sum(x * np.log(x / other[action]) for action, x in mine.items())
        assert p.entropy()[row] == pytest.approx(entropy, rel=1e-9)
        assert p.kl(q)[row] == pytest.approx(kl, rel=1e-9)
        assert tuple(np.asarray(p.mode()[row], int)) == max(mine, key=mine.__getitem__)


@pytest.mark.parametrize("space", BOXES, ids=names)
def test_boxes_against_scipy(space: spaces.Box, rng: np.random.Generator) -> None:
    head = action_head(space)
    (mean, log_std), (other_mean, other_log_std) = outputs(head, rng), outputs(head, rng)
    p, q = head.distribution(mean, log_std), head.distribution(other_mean, other_log_std)
    action = rng.normal(size=mean.shape)
    mine = stats.norm(mean, np.exp(log_std))
    np.testing.assert_allclose(p.log_prob(action), mine.logpdf(action).sum(-1), rtol=1e-9)
    np.testing.assert_allclose(p.entropy(), mine.entropy().sum(-1), rtol=1e-9)
    np.testing.assert_array_equal(p.mode(), mean)

    def kl(row: int, i: int) -> float:
        one = stats.norm(mean[row, i], np.exp(log_std[i]))
        two = stats.norm(other_mean[row, i], np.exp(other_log_std[i]))
        low, high = one.ppf(1e-14), one.isf(1e-14)
        return integrate.quad(lambda x: one.pdf(x) * (one.logpdf(x) - two.logpdf(x)), low, high)[0]

    expected = [sum(kl(row, i) for i in range(head.scales)) for row in range(BATCH)]
    np.testing.assert_allclose(p.kl(q), expected, rtol=1e-6)


@pytest.mark.parametrize("space", DISCRETE_SPACES + BOXES, ids=names)
def test_jax_agrees_with_numpy(space: spaces.Space, rng: np.random.Generator) -> None:
    head = action_head(space)
    (first, scale), (second, other_scale) = outputs(head, rng), outputs(head, rng)
    noise = head.noise(rng, (BATCH,))

    def everything(first, scale, second, other_scale, noise):  # type: ignore[no-untyped-def]
        p, q = head.distribution(first, scale), head.distribution(second, other_scale)
        action = p.sample(noise)
        return action, p.mode(), p.log_prob(action), p.entropy(), p.kl(q)

    inputs = [np.asarray(x, np.float32) for x in (first, scale, second, other_scale, noise)]
    ours = everything(*inputs)
    theirs = jax.jit(everything)(*map(jnp.asarray, inputs))
    for here, there in zip(ours, theirs, strict=True):
        assert np.shape(here) == there.shape
        np.testing.assert_allclose(here, there, rtol=2e-5, atol=2e-5)


def repeated(head: ActionHead, row: np.ndarray, scale: np.ndarray, count: int) -> np.ndarray:
    """Actions sampled `count` times from one row of outputs."""
    noise = head.noise(np.random.default_rng(1), (count,))
    assert noise.shape == (count, head.outputs)
    assert noise.dtype == np.float32
    sample = head.distribution(np.tile(row, (count, 1)).astype(np.float32), scale).sample(noise)
    return np.asarray(sample)


@pytest.mark.parametrize("space", DISCRETE_SPACES, ids=names)
def test_sampled_frequencies(space: spaces.Space, rng: np.random.Generator) -> None:
    head, count = action_head(space), 20_000
    logits, scale = outputs(head, rng)
    truth = joint(head, logits[0] / 2)
    sample = repeated(head, logits[0] / 2, scale, count).astype(int)
    seen = {action: 0 for action in truth}
    for action in map(tuple, sample.tolist()):
        seen[action] += 1
    expected = np.array(list(truth.values())) * count
    assert expected.min() > 5
    assert stats.chisquare(list(seen.values()), expected).pvalue > 1e-3


@pytest.mark.parametrize("space", BOXES, ids=names)
def test_sampled_normals(space: spaces.Box, rng: np.random.Generator) -> None:
    head = action_head(space)
    mean, log_std = outputs(head, rng)
    sample = repeated(head, mean[0], log_std, 20_000)
    for i in range(head.scales):
        normal = stats.norm(mean[0, i], np.exp(log_std[i]))
        assert stats.kstest(sample[:, i], normal.cdf).pvalue > 1e-3
    correlation = np.corrcoef(sample.T).reshape(head.scales, head.scales)
    assert np.abs(correlation - np.eye(head.scales)).max() < 0.05


def every_stored_action(head: ActionHead, rng: np.random.Generator) -> Iterator[np.ndarray]:
    if head.scales:
        yield 3 * rng.standard_normal((BATCH, *head.shape)).astype(np.float32)
        return
    sizes = head.sizes or (2,) * head.outputs
    everything = np.array(list(itertools.product(*map(range, sizes))), np.int32)
    yield everything.astype(head.dtype)


@pytest.mark.parametrize("space", DISCRETE_SPACES + BOXES, ids=names)
def test_environments_get_members_of_their_space(
    space: spaces.Space, rng: np.random.Generator
) -> None:
    head = action_head(space)
    for stored in every_stored_action(head, rng):
        actions = head.to_environment(stored)
        assert actions.shape == (len(stored), *space.shape)
        assert actions.dtype == space.dtype
        assert all(space.contains(action) for action in actions)
        if not head.scales:
            # Nothing two stored actions share: the map loses no action and invents none.
            assert len({action.tobytes() for action in actions}) == len(stored)
    assert stored.shape[1:] == head.shape


def test_box_actions_are_clipped_and_the_rest_shifted() -> None:
    box = action_head(spaces.Box(np.array([-1.0, 0.0]), np.array([1.0, 2.0]), dtype=np.float64))
    stored = np.array([[-5.0, 1.5], [0.25, 9.0]], np.float32)
    np.testing.assert_array_equal(box.to_environment(stored), [[-1.0, 1.5], [0.25, 2.0]])
    np.testing.assert_array_equal(stored, np.array([[-5.0, 1.5], [0.25, 9.0]], np.float32))
    shifted = action_head(spaces.Discrete(3, start=-1))
    np.testing.assert_array_equal(shifted.to_environment(np.array([[0], [2]])), [-1, 1])
    many = action_head(spaces.MultiDiscrete([2, 3], start=[10, -1]))
    np.testing.assert_array_equal(many.to_environment(np.array([[1, 2]])), [[11, 1]])


def test_an_unsupported_action_space_is_named() -> None:
    with pytest.raises(BadEnvironmentError, match=r"Text\(.*expected Box, Discrete"):
        action_head(spaces.Text(4))

"""Returns and advantages against loops one can read."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import tether.objectives as o

GAMMA, LAM = 0.93, 0.85


def rollout(seed: int, length: int = 37, copies: int = 5) -> dict[str, np.ndarray]:
    """Random data in which episodes terminate, are truncated, and are cut off by the end."""
    rng = np.random.default_rng(seed)
    shape = (length, copies)
    terminated = rng.random(shape) < 0.15
    done = terminated | (rng.random(shape) < 0.15)
    done[-1] = True
    floats = {name: rng.normal(size=shape) for name in ("reward", "value", "next_value")}
    return {**floats, "terminated": terminated, "done": done}


def loop_gae(data: dict[str, np.ndarray], gamma: float, lam: float) -> np.ndarray:
    advantage = np.zeros_like(data["reward"])
    for n in range(advantage.shape[1]):
        following = 0.0
        for t in reversed(range(advantage.shape[0])):
            bootstrap = 0.0 if data["terminated"][t, n] else data["next_value"][t, n]
            delta = data["reward"][t, n] + gamma * bootstrap - data["value"][t, n]
            if data["done"][t, n]:
                following = 0.0
            following = delta + gamma * lam * following
            advantage[t, n] = following
    return advantage


def gae_of(*data, lam=LAM, **options):
    reward, value, next_value, terminated, done = data
    flags = {"terminated": terminated, "done": done}
    return o.gae(reward, value, next_value, **flags, gamma=GAMMA, lam=lam, **options)


@pytest.mark.parametrize("length", [1, 2, 3, 37])
def test_gae_is_the_loop(length, backend):
    data = rollout(length, length)
    np.testing.assert_allclose(
        backend.value(gae_of, *data.values()), loop_gae(data, GAMMA, LAM), rtol=1e-12, atol=1e-13
    )


def test_gae_along_another_axis_is_the_same(backend):
    data = rollout(1)
    turned = [x.T for x in data.values()]
    for axis in (1, -1):
        found = backend.value(lambda *xs, axis=axis: gae_of(*xs, axis=axis), *turned)
        np.testing.assert_allclose(found.T, loop_gae(data, GAMMA, LAM), rtol=1e-12, atol=1e-13)


def test_gae_at_lambda_one_is_the_return_minus_the_value(backend):
    data = rollout(2)
    # Inside an episode the next value is the next step's value, so that the terms telescope.
    data["next_value"][:-1] = np.where(
        data["done"], data["next_value"], np.roll(data["value"], -1, 0)
    )[:-1]
    expected = np.zeros_like(data["reward"])
    for n in range(expected.shape[1]):
        for t in reversed(range(expected.shape[0])):
            if data["done"][t, n]:
                following = 0.0 if data["terminated"][t, n] else data["next_value"][t, n]
            following = data["reward"][t, n] + GAMMA * following
            expected[t, n] = following
    found = backend.value(lambda *xs: gae_of(*xs, lam=1.0), *data.values())
    np.testing.assert_allclose(found, expected - data["value"], rtol=1e-11, atol=1e-12)


def test_gae_at_lambda_zero_is_the_td_error(backend):
    data = rollout(3)
    discount = np.where(data["terminated"], 0.0, GAMMA)
    found = backend.value(lambda *xs: gae_of(*xs, lam=0.0), *data.values())
    expected = backend.value(
        o.td_error, data["reward"], data["value"], data["next_value"], discount
    )
    np.testing.assert_allclose(found, expected, rtol=1e-12)
    plain = data["reward"] + discount * data["next_value"] - data["value"]
    np.testing.assert_allclose(found, plain, rtol=1e-12)


def test_what_follows_a_termination_is_never_looked_at(autodiff):
    data = rollout(4)
    spoilt = {**data, "next_value": np.where(data["terminated"], np.nan, data["next_value"])}
    for inputs in (data, spoilt):
        found = autodiff.value(gae_of, *inputs.values())
        np.testing.assert_allclose(found, loop_gae(data, GAMMA, LAM), rtol=1e-12, atol=1e-13)
    slope = autodiff.gradient(lambda *xs: gae_of(*xs).sum(), *spoilt.values())[2]
    assert np.all(slope[data["terminated"]] == 0)
    assert np.all(slope[~data["terminated"]] > 0)
    discount = np.where(data["terminated"], 0.0, GAMMA)
    found = autodiff.value(
        o.td_error, spoilt["reward"], spoilt["value"], spoilt["next_value"], discount
    )
    assert np.all(np.isfinite(found))


def test_a_termination_that_is_not_marked_done_still_ends_the_episode(backend):
    data = rollout(5)
    careless = {**data, "done": data["done"] & ~data["terminated"]}
    np.testing.assert_array_equal(
        backend.value(gae_of, *careless.values()), backend.value(gae_of, *data.values())
    )


def test_padding_is_as_if_it_were_not_there(backend):
    """Pads at either end or in between, of any content: each row is as it would be alone."""
    rng = np.random.default_rng(6)
    data = {name: x.T for name, x in rollout(6, length=12, copies=4).items()}
    mask = rng.random((4, 12)) < 0.6
    mask[0], mask[1, :5], mask[2, 7:] = True, False, False
    found = backend.value(lambda *xs: gae_of(*xs[:-1], axis=1, mask=xs[-1]), *data.values(), mask)
    returns = backend.value(
        lambda r, b, m: o.discounted_return(r, GAMMA, bootstrap=b, mask=m, axis=1),
        data["reward"],
        data["value"][:, 0],
        mask,
    )
    assert np.all(found[~mask] == 0) and np.all(returns[~mask] == 0)
    for b in range(4):
        row = {name: x[b, mask[b]][:, None] for name, x in data.items()}
        np.testing.assert_allclose(
            found[b, mask[b]], loop_gae(row, GAMMA, LAM)[:, 0], rtol=1e-12, atol=1e-13
        )
        alone = o.discounted_return(row["reward"][:, 0], GAMMA, bootstrap=data["value"][b, 0])
        np.testing.assert_allclose(returns[b, mask[b]], alone, rtol=1e-12)


def test_padding_spoils_no_derivative_by_the_discount(autodiff):
    data = rollout(10, length=6, copies=2)
    mask = np.ones((6, 2), bool)
    mask[4:, 1] = False
    spoilt = [np.where(mask, x, np.nan) if x.dtype.kind == "f" else x for x in data.values()]

    def total(gamma, *xs):
        flags = {"terminated": xs[3], "done": xs[4]}
        return o.gae(*xs[:3], **flags, gamma=gamma, lam=LAM, mask=xs[5]).sum()

    clean = autodiff.gradient(total, np.array(GAMMA), *data.values(), mask)[0]
    assert np.isfinite(clean) and abs(clean) > 1e-3
    assert autodiff.gradient(total, np.array(GAMMA), *spoilt, mask)[0] == clean


def test_the_discounted_return_is_the_loop(backend):
    data = rollout(7)
    discount = np.where(data["done"], 0.0, GAMMA)
    discount[-1] = GAMMA
    bootstrap = data["value"][0]
    expected = np.zeros_like(data["reward"])
    following = bootstrap
    for t in reversed(range(len(expected))):
        following = data["reward"][t] + discount[t] * following
        expected[t] = following
    found = backend.value(
        lambda r, d, b: o.discounted_return(r, d, bootstrap=b), data["reward"], discount, bootstrap
    )
    np.testing.assert_allclose(found, expected, rtol=1e-12, atol=1e-13)


def test_the_discounted_return_of_a_constant_reward_is_the_geometric_sum(backend):
    steps = np.arange(20, 0, -1)
    expected = (1 - 0.9**steps) / (1 - 0.9)
    found = backend.value(lambda r: o.discounted_return(r, 0.9), np.ones(20))
    np.testing.assert_allclose(found, expected, rtol=1e-12)
    found = backend.value(lambda r: o.discounted_return(r, 0.9, bootstrap=10.0), np.ones(20))
    np.testing.assert_allclose(found, np.full(20, 10.0), rtol=1e-12)
    undiscounted = backend.value(lambda r: o.discounted_return(r, 1.0), np.ones(20))
    np.testing.assert_array_equal(undiscounted, steps)


def test_the_recurrence_is_the_loop_for_any_coefficients(backend):
    rng = np.random.default_rng(8)
    a, c = rng.normal(size=(2, 33, 4))
    for coefficients in (c, c[:, :1]):
        expected, following = np.zeros_like(a), np.zeros(4)
        for t in reversed(range(33)):
            following = a[t] + coefficients[t] * following
            expected[t] = following
        found = backend.value(o.reverse_linear_recurrence, a, coefficients)
        np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize(
    ("length", "doublings"), [(1, 0), (2, 1), (128, 7), (1000, 10), (2048, 11)]
)
def test_time_is_crossed_in_doublings_without_a_loop(length, doublings):
    a = jnp.ones((length, 2))
    text = str(jax.make_jaxpr(lambda c: o.reverse_linear_recurrence(a, c))(a))
    # One shift of x a doubling, and one of c a doubling but the last.
    assert text.count("concatenate[") == max(2 * doublings - 1, 0)
    assert "while" not in text and "scan" not in text
    text = str(jax.make_jaxpr(lambda r: o.reverse_linear_recurrence(r, 0.9))(a))
    assert text.count("concatenate[") == doublings


def test_long_horizons_keep_their_digits_in_float32(single):
    rng = np.random.default_rng(9)
    reward = rng.normal(size=(4096, 2))
    found = single.value(lambda r: o.discounted_return(r, 0.99), reward)
    following = np.zeros(2)
    for t in reversed(range(4096)):
        following = reward[t] + 0.99 * following
    np.testing.assert_allclose(found[0], following, rtol=1e-4, atol=1e-4)

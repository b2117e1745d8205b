"""Conjugate gradients, the natural step and the line search, eager and compiled."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from array_api_compat import array_namespace

import tether.objectives as o

ROOT = np.random.default_rng(0).normal(size=(8, 8))
MATRIX = ROOT @ ROOT.T + 0.5 * np.eye(8)
VECTOR = np.random.default_rng(1).normal(size=8)


def compiled_loop(round_, state, times):
    return jax.lax.fori_loop(0, times, lambda _, held: round_(held), state)


def loop_of(backend):
    """Compiled rounds where there is a compiler: quick, and equal to unrolled ones (see below)."""
    return {"loop": compiled_loop} if backend.name == "jax-jit" else {}


@pytest.mark.parametrize("damping", [0.0, 0.3])
def test_conjugate_gradients_solve_the_system(damping, backend):
    found = backend.value(
        lambda h, b: o.conjugate_gradient(lambda v: h @ v, b, 8, 1e-24, damping), MATRIX, VECTOR
    )
    expected = np.linalg.solve(MATRIX + damping * np.eye(8), VECTOR)
    np.testing.assert_allclose(found, expected, rtol=1e-8)


def test_as_many_rounds_as_distinct_eigenvalues_are_enough(backend):
    found = backend.value(
        lambda d, b: o.conjugate_gradient(lambda v: d * v, b, 2),
        np.array([1.0, 1.0, 5.0, 5.0]),
        VECTOR[:4],
    )
    np.testing.assert_allclose(found, VECTOR[:4] / [1, 1, 5, 5], rtol=1e-12)


@pytest.mark.parametrize("rounds", [0, 1, 3])
def test_the_error_in_the_norm_of_the_matrix_falls_with_every_round(rounds, backend):
    solution = np.linalg.solve(MATRIX, VECTOR)

    def error(iterations):
        x = backend.value(
            lambda h, b: o.conjugate_gradient(lambda v: h @ v, b, iterations, **loop_of(backend)),
            MATRIX,
            VECTOR,
        )
        return (x - solution) @ MATRIX @ (x - solution)

    assert error(rounds + 1) < error(rounds)


def test_rounds_after_the_solution_change_nothing(single):
    """In float32, where the residual would otherwise be divided by its own rounding error."""
    loop = loop_of(single)
    for scale in (1e-12, 1.0, 1e12):
        few, many = (
            single.value(
                lambda h, b, n=n: o.conjugate_gradient(lambda v: h @ v, b, n, **loop),
                MATRIX,
                VECTOR * scale,
            )
            for n in (30, 200)
        )
        np.testing.assert_array_equal(few, many)
        expected = np.linalg.solve(MATRIX, VECTOR)
        np.testing.assert_allclose(many / scale, expected, rtol=1e-3, atol=1e-4)


def test_the_tolerance_is_relative(backend):
    def solve(h, b):
        return o.conjugate_gradient(lambda v: h @ v, b, 8, 1e-3)

    x, scaled = (backend.value(solve, MATRIX, VECTOR * scale) for scale in (1.0, 2.0**-40))
    np.testing.assert_array_equal(scaled, x * 2.0**-40)
    left = np.sum((VECTOR - MATRIX @ x) ** 2) / np.sum(VECTOR**2)
    assert 1e-12 < left <= 1e-3


def test_no_curvature_and_no_gradient_give_no_step(backend):
    for matrix, vector in ((-np.eye(3), np.ones(3)), (np.eye(3), np.zeros(3))):
        for solve in (
            lambda h, b: o.conjugate_gradient(lambda v: h @ v, b, **loop_of(backend)),
            lambda h, b: o.natural_step(lambda v: h @ v, b, 0.01, **loop_of(backend)),
        ):
            assert np.all(backend.value(solve, matrix, vector) == 0)


def test_the_natural_step_is_the_best_within_the_region(backend):
    delta = 0.01
    step = backend.value(
        lambda h, g: o.natural_step(lambda v: h @ v, g, delta, tolerance=1e-24, **loop_of(backend)),
        MATRIX,
        VECTOR,
    )
    assert 0.5 * step @ MATRIX @ step == pytest.approx(delta, rel=1e-8)
    direction = np.linalg.solve(MATRIX, VECTOR)
    np.testing.assert_allclose(step / np.linalg.norm(step), direction / np.linalg.norm(direction))
    # Any other step of the same second-order divergence gains less.
    others = np.random.default_rng(1).normal(size=(200, 8))
    others *= np.sqrt(2 * delta / np.einsum("ni,ij,nj->n", others, MATRIX, others))[:, None]
    assert np.all(others @ VECTOR < step @ VECTOR)


def test_damping_shortens_the_step(backend):
    short, long = (
        backend.value(
            lambda h, g, d=d: o.natural_step(
                lambda v: h @ v, g, 0.01, damping=d, **loop_of(backend)
            ),
            MATRIX,
            VECTOR,
        )
        for d in (0.5, 0.0)
    )
    assert short @ MATRIX @ short < long @ MATRIX @ long
    assert 0.5 * short @ (MATRIX + 0.5 * np.eye(8)) @ short == pytest.approx(0.01, rel=1e-5)


def test_the_step_of_a_real_policy_has_the_divergence_asked_for():
    """The Fisher matrix from automatic differentiation of categorical_kl, in both libraries."""
    logits, advantage = np.random.default_rng(2).normal(size=(2, 6, 4))
    delta = 1e-6
    # Like every gradient of a softmax, this one does not move the logits of a state together.
    gradient = (advantage - advantage.mean(1, keepdims=True)).ravel()

    def kl(flat, old):
        return o.masked_mean(o.categorical_kl(old, flat.reshape(6, 4)))

    with jax.enable_x64(True):
        old = jnp.asarray(logits)
        curve = jax.grad(lambda flat: kl(flat, old))

        @jax.jit
        def step_of(g):
            return o.natural_step(
                lambda v: jax.jvp(curve, (old.ravel(),), (v,))[1],
                g,
                delta,
                iterations=24,
                loop=compiled_loop,
            )

        step = np.asarray(step_of(jnp.asarray(gradient)))
        assert float(kl(old.ravel() + step, old)) == pytest.approx(delta, rel=1e-2)

    held = torch.as_tensor(logits)

    def matvec(v):
        def slope(flat):
            return torch.func.grad(lambda x: kl(x, held))(flat)

        return torch.func.jvp(slope, (held.reshape(-1),), (v,))[1]

    other = o.natural_step(matvec, torch.as_tensor(gradient), delta, iterations=24)
    np.testing.assert_allclose(other.numpy(), step, rtol=1e-5)


def hill(candidate):
    """Objective and divergence along a line: rises up to 1, costs half the squared length."""
    xp = array_namespace(candidate)
    length = xp.sum(candidate)
    return length - 0.5 * length * length, 0.5 * length * length


@pytest.mark.parametrize(
    ("length", "max_kl", "backtracks"),
    [
        (0.5, 1.0, 0),  # good at once
        (8.0, 9.0, 3),  # divergence: 4 is in the region, but only 1 has a gain
        (1.0, 0.2, 1),  # gain at once, but only a half is in the region
        (1.9, 9.0, 0),  # past the top and still above the start
    ],
)
def test_the_line_search_takes_the_longest_candidate_that_keeps_its_promise(
    length, max_kl, backtracks, backend
):
    def search(step):
        return o.line_search(hill, step, max_kl=max_kl)

    step, found = backend.raw(search, np.array([length, 0.0]))
    expected = length * 0.5**backtracks
    np.testing.assert_allclose(np.asarray(step), [expected, 0.0], rtol=1e-12)
    assert bool(found.accepted) is True
    assert int(found.backtracks) == backtracks
    assert float(found.objective) == pytest.approx(expected - 0.5 * expected**2)
    assert float(found.improvement) == pytest.approx(expected - 0.5 * expected**2)
    assert float(found.kl) == pytest.approx(0.5 * expected**2)


def _lost(candidate):
    return candidate[0] * 0 - 1.0, candidate[0] * 0


def _level(candidate):
    return candidate[0] * 0, candidate[0] * 0


def _not_a_number(candidate):
    return candidate[0] + np.nan, candidate[0] * 0


def _no_divergence(candidate):
    return candidate[0], candidate[0] * np.nan


@pytest.mark.parametrize("evaluate", [_lost, _level, _not_a_number, _no_divergence])
def test_the_line_search_refuses_losses_draws_and_nan(evaluate, backend):
    step, found = backend.raw(
        lambda s: o.line_search(evaluate, s, max_kl=1.0, start=0.0, candidates=4),
        np.array([1.0, 2.0]),
    )
    np.testing.assert_array_equal(np.asarray(step), [0.0, 0.0])
    assert not bool(found.accepted)
    assert int(found.backtracks) == 4
    assert float(found.improvement) == 0 and float(found.kl) == 0


def test_the_line_search_gets_past_nan_and_counts_from_the_given_start(backend):
    def evaluate(candidate):
        xp = array_namespace(candidate)
        objective, kl = hill(candidate)
        return xp.where(kl > 1.0, xp.asarray(np.nan), objective), kl

    step, found = backend.raw(
        lambda s: o.line_search(evaluate, s, max_kl=9.0, start=0.3, shrink=0.7), np.array([8.0])
    )
    lengths = 8.0 * 0.7 ** np.arange(10)
    good = (lengths**2 <= 2.0) & (lengths - lengths**2 / 2 > 0.3)
    assert int(found.backtracks) == np.argmax(good) > 0
    assert np.asarray(step)[0] == pytest.approx(lengths[good][0])
    gain = lengths[good][0] - lengths[good][0] ** 2 / 2 - 0.3
    assert float(found.improvement) == pytest.approx(gain)


@pytest.mark.parametrize(("least", "length"), [(0.0, 2.0 * 0.9), (0.4, 2.0 * 0.9**4), (0.51, 0.0)])
def test_the_line_search_wants_the_improvement_asked_for(least, length, backend):
    # The hill rises by x - x^2 / 2: by 0.5 at its top, x = 1.
    step, found = backend.raw(
        lambda s: o.line_search(hill, s, max_kl=9.0, min_improvement=least, shrink=0.9),
        np.array([2.0, 0.0]),
    )
    assert np.asarray(step)[0] == pytest.approx(length, abs=1e-12)
    assert bool(found.accepted) == (length > 0)


def test_every_round_costs_one_product():
    asked = []

    def matvec(v):
        asked.append(v)
        return MATRIX @ v

    o.conjugate_gradient(matvec, VECTOR, 5)
    assert len(asked) == 5


def test_a_compiled_loop_gives_what_the_unrolled_one_gives():
    def run(loop):
        def update(h, g):
            step = o.natural_step(lambda v: h @ v, g, 2.0, iterations=5, **loop)
            return o.line_search(hill, step, max_kl=0.1, **loop)

        arrays = [jnp.asarray(x, dtype=jnp.float32) for x in (MATRIX, np.abs(VECTOR))]
        return jax.jit(update)(*arrays)

    (step, found), (same, also) = run({}), run({"loop": compiled_loop})
    np.testing.assert_allclose(same, step, rtol=1e-4)
    assert int(also.backtracks) == int(found.backtracks) > 0
    assert bool(also.accepted) and bool(found.accepted)
    np.testing.assert_allclose(also.kl, found.kl, rtol=1e-4)
    assert step.dtype == np.float32 and found.kl.dtype == np.float32


def test_the_projection_is_the_nearest_direction_that_is_slow_enough(backend):
    rng = np.random.default_rng(0)
    g, k = rng.normal(size=(2, 200, 3))
    k[0] = 0.0
    z = backend.value(lambda g, k: o.trust_region_projection(g, k, 0.5), g, k)
    slope = (k * z).sum(-1)
    free = (k * g).sum(-1) <= 0.5
    assert 20 < free.sum() < 180
    np.testing.assert_array_equal(z[free], g[free])
    np.testing.assert_allclose(slope[~free], 0.5)
    # Nearest: no other direction that respects the bound lies closer to g.
    for _ in range(50):
        other = z + rng.normal(size=z.shape) * rng.choice([0.01, 0.3])
        allowed = (k * other).sum(-1) <= 0.5
        closer = ((other - g) ** 2).sum(-1) < ((z - g) ** 2).sum(-1)
        assert not (allowed & closer).any()

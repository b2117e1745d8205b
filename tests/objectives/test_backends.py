"""What every equation owes to its caller, whatever it computes.

The same values and gradients on every library, float32 in and float32 out, and no effect at all of
what a masked position holds.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

import tether.objectives as o

from .conftest import Backend

SHAPE = (6, 3)
rng = np.random.default_rng(7)
MASK = rng.random(SHAPE) < 0.7
MASK[0], MASK[-1, 0] = True, False
TERMINATED = rng.random(SHAPE) < 0.2
DONE = TERMINATED | (rng.random(SHAPE) < 0.2)
DONE[-1] = True


@dataclass(frozen=True)
class Case:
    """An equation, the number of float arrays it takes, and whether it takes a mask after them."""

    function: Callable[..., Any]
    floats: int
    masked: bool = True
    differentiable: bool = True
    flags: tuple[np.ndarray, ...] = ()

    def inputs(self, masked: bool) -> list[np.ndarray]:
        draw = np.random.default_rng(self.floats)
        floats = [draw.normal(size=SHAPE) for _ in range(self.floats)]
        return [*floats, *self.flags] + [MASK] * masked

    def call(self, *xs: Any) -> Any:
        """The equation of (floats..., flags...) or (floats..., flags..., mask)."""
        last = self.floats + len(self.flags)
        return self.function(*xs[:last], *xs[last:] or [None])


def _gae(*xs: Any) -> Any:
    r, v, n, terminated, done, mask = xs
    return o.gae(r, v, n, terminated=terminated, done=done, gamma=0.9, lam=0.8, mask=mask)


CASES = {
    "reverse_linear_recurrence": Case(
        lambda a, c, m: o.reverse_linear_recurrence(a, c), 2, masked=False
    ),
    "discounted_return": Case(lambda r, m: o.discounted_return(r, 0.9, bootstrap=2.0, mask=m), 1),
    "discounted_return_array": Case(
        lambda r, d, m: o.discounted_return(r, d, bootstrap=r[0] * 0 + 1, mask=m, axis=0), 2
    ),
    "td_error": Case(lambda r, v, n, m: o.td_error(r, v, n, 0.9), 3, masked=False),
    "gae": Case(_gae, 3, flags=(TERMINATED, DONE)),
    "policy_gradient": Case(o.policy_gradient, 2),
    "surrogate": Case(o.surrogate, 2),
    "clipped_surrogate": Case(lambda x, a, m: o.clipped_surrogate(x, a, 0.2, m), 2),
    "kl_penalized_surrogate": Case(lambda x, a, k, m: o.kl_penalized_surrogate(x, a, k, 0.3, m), 3),
    "value_loss": Case(o.value_loss, 2),
    "clipped_value_loss": Case(lambda v, w, t, m: o.clipped_value_loss(v, w, t, 0.2, m), 3),
    "clip_fraction": Case(lambda x, m: o.clip_fraction(x, None, 0.2, m), 1, differentiable=False),
    "clip_fraction_active": Case(
        lambda x, a, m: o.clip_fraction(x, a, 0.2, m), 2, differentiable=False
    ),
    "explained_variance": Case(o.explained_variance, 2),
    "effective_sample_size": Case(o.effective_sample_size, 1),
    "normalize_advantage": Case(o.normalize_advantage, 1),
    "masked_mean": Case(o.masked_mean, 1),
    "masked_sum": Case(o.masked_sum, 1),
    "categorical_kl": Case(lambda p, q, m: o.categorical_kl(p, q), 2, masked=False),
    "categorical_entropy": Case(lambda p, m: o.categorical_entropy(p), 1, masked=False),
    "diagonal_gaussian_kl": Case(
        lambda a, b, c, d, m: o.diagonal_gaussian_kl(a, b, c, d), 4, masked=False
    ),
    "diagonal_gaussian_entropy": Case(lambda s, m: o.diagonal_gaussian_entropy(s), 1, masked=False),
    "bernoulli_kl": Case(lambda p, q, m: o.bernoulli_kl(p, q), 2, masked=False),
    "bernoulli_entropy": Case(lambda p, m: o.bernoulli_entropy(p), 1, masked=False),
    "kl_k1": Case(o.kl_k1, 1),
    "kl_penalized_reward": Case(lambda r, x, mask=None: o.kl_penalized_reward(r, x, 0.3, mask), 2),
    "trust_region_projection": Case(
        lambda g, k, m: o.trust_region_projection(g, k, 0.1), 2, masked=False
    ),
    "kl_k2": Case(o.kl_k2, 1),
    "kl_k3": Case(o.kl_k3, 1),
    "bradley_terry": Case(lambda a, b, p, m: o.bradley_terry(a, b, p, m, noise=0.1), 3),
    "bradley_terry_plain": Case(lambda a, b, m: o.bradley_terry(a, b, mask=m), 2),
    "k_wise": Case(o.k_wise, 1),
    "dpo": Case(lambda a, b, p, m: o.dpo(a, b, 0.5, p, 0.1, mask=m), 3),
    "ipo": Case(lambda a, b, p, m: o.ipo(a, b, 0.5, p, 0.1, mask=m), 3),
    "dpo_implicit_reward": Case(lambda x, m: o.dpo_implicit_reward(x, 0.5), 1, masked=False),
    "simpo": Case(lambda a, b, p, m: o.simpo(a, b, 2.5, 0.7, p, 0.1, mask=m), 3),
    # Log-probabilities are negative.
    "orpo": Case(lambda a, b, p, m: o.orpo(a - 4.0, b - 4.0, 0.5, p, 0.1, mask=m), 3),
    "kto": Case(
        lambda x, p, m: o.kto(x, p, 0.4, 0.5, desirable_weight=1.3, undesirable_weight=0.8, mask=m),
        2,
    ),
    "kto_reference_point": Case(
        lambda x, m: o.kto_reference_point(x + 2.0, m), 1, differentiable=False
    ),
    "unlikelihood": Case(lambda a, b, p, m: o.unlikelihood(a, b, 0.6, p, 0.1, mask=m), 3),
    "worst_case": Case(o.worst_case, 1),
    "uncertainty_weighted": Case(lambda x, m: o.uncertainty_weighted(x, 0.3, m), 1),
    "ensemble_variance": Case(o.ensemble_variance, 1),
    "masked_negative_log_likelihood": Case(o.masked_negative_log_likelihood, 1),
}
MASKED = [name for name, case in CASES.items() if case.masked]
SMOOTH = [name for name, case in CASES.items() if case.differentiable]
REDUCED = {
    "policy_gradient": (o.policy_gradient, 2),
    "surrogate": (o.surrogate, 2),
    "clipped_surrogate": (lambda x, a, **k: o.clipped_surrogate(x, a, 0.2, **k), 2),
    "kl_penalized_surrogate": (lambda *x, **k: o.kl_penalized_surrogate(*x, 0.3, **k), 3),
    "value_loss": (o.value_loss, 2),
    "clipped_value_loss": (lambda *x, **k: o.clipped_value_loss(*x, 0.2, **k), 3),
    "bradley_terry": (o.bradley_terry, 2),
    "dpo": (lambda a, b, **k: o.dpo(a, b, 0.5, **k), 2),
    "ipo": (lambda a, b, **k: o.ipo(a, b, 0.5, **k), 2),
    "simpo": (lambda a, b, **k: o.simpo(a, b, 2.5, 0.7, **k), 2),
    "orpo": (lambda a, b, **k: o.orpo(a - 4.0, b - 4.0, 0.5, **k), 2),
    "kto": (lambda x, p, **k: o.kto(x, p, 0.4, 0.5, **k), 2),
    "unlikelihood": (lambda a, b, **k: o.unlikelihood(a, b, 0.6, **k), 2),
    "behaviour_cloning": (o.behaviour_cloning, 1),
}


@pytest.mark.parametrize("name", CASES)
def test_every_library_finds_the_same_value(name, library):
    case = CASES[name]
    for masked in {False, case.masked}:
        inputs = case.inputs(masked)
        expected = case.call(*inputs)
        found = library.value(case.call, *inputs)
        assert found.shape == np.shape(expected)
        np.testing.assert_allclose(found, expected, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("name", SMOOTH)
def test_every_library_finds_the_gradient_of_finite_differences(name, autodiff):
    case = CASES[name]
    inputs = case.inputs(case.masked)
    value, slopes = Backend("numpy").outcome(case.call, *inputs)
    assert any(np.any(np.abs(slope) > 1e-3) for slope in slopes)
    found, gradients = autodiff.outcome(case.call, *inputs)
    np.testing.assert_allclose(found, value, rtol=1e-11, atol=1e-12)
    for gradient, slope in zip(gradients, slopes, strict=True):
        np.testing.assert_allclose(gradient, slope, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("name", CASES)
def test_float32_stays_float32(name, single):
    case = CASES[name]
    inputs = case.inputs(case.masked)
    found = single.raw(case.call, *inputs)
    assert str(found.dtype).removeprefix("torch.") == "float32"
    np.testing.assert_allclose(np.asarray(found), case.call(*inputs), rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("name", MASKED)
def test_masked_positions_change_neither_value_nor_gradient(name, autodiff):
    case = CASES[name]
    clean = case.inputs(masked=True)
    poison = np.resize([np.nan, np.inf, -np.inf], SHAPE)
    spoilt = [
        np.where(MASK, x, np.roll(poison, i) if x.dtype.kind == "f" else ~x)
        for i, x in enumerate(clean[:-1])
    ]
    if not case.differentiable:
        found = autodiff.value(case.call, *spoilt, MASK)
        np.testing.assert_array_equal(found, autodiff.value(case.call, *clean))
        return
    value, slopes = autodiff.outcome(case.call, *clean)
    found, gradients = autodiff.outcome(case.call, *spoilt, MASK)
    np.testing.assert_array_equal(found, value)
    for gradient, slope in zip(gradients, slopes, strict=True):
        np.testing.assert_array_equal(gradient, slope)
        assert np.all(gradient[~MASK] == 0)


@pytest.mark.parametrize("name", REDUCED)
def test_reductions_agree_with_leaving_the_masked_elements_out(name, backend):
    function, floats = REDUCED[name]
    inputs = Case(function, floats).inputs(masked=False)
    there = [x[MASK] for x in inputs]
    alone = np.asarray(function(*there, reduction="none"))
    assert alone.shape == (MASK.sum(),)

    def reduced(*xs: Any) -> list[Any]:
        kinds = ("none", "sum", "mean")
        return [function(*xs[:-1], mask=xs[-1], reduction=kind) for kind in kinds]

    each, total, mean = map(np.asarray, backend.raw(reduced, *inputs, MASK))
    np.testing.assert_allclose(each[MASK], alone, rtol=1e-12)
    assert np.all(each[~MASK] == 0)
    np.testing.assert_allclose(total, alone.sum(), rtol=1e-12)
    np.testing.assert_allclose(mean, alone.mean(), rtol=1e-12)
    np.testing.assert_allclose(function(*there), alone.mean(), rtol=1e-12)


def test_a_mask_of_integers_or_of_one_column_counts_like_booleans(backend):
    x = Case(o.masked_mean, 1).inputs(masked=False)[0]
    rows = MASK[:, :1]
    expected = x[np.broadcast_to(rows, SHAPE)].mean()
    for mask in (rows, rows.astype(np.int64), np.broadcast_to(rows, SHAPE).copy()):
        np.testing.assert_allclose(backend.value(o.masked_mean, x, mask), expected, rtol=1e-12)


def test_the_mean_of_nothing_is_seen_but_does_no_harm(autodiff):
    x, nothing = np.ones(SHAPE), np.zeros(SHAPE, bool)
    assert np.isnan(autodiff.value(o.value_loss, x, x, nothing))
    for gradient in autodiff.gradient(o.value_loss, x, x, nothing):
        assert np.all(gradient == 0)


@pytest.mark.parametrize("name", ["gae", "clipped_surrogate", "dpo", "categorical_kl", "k_wise"])
def test_vmap_agrees_with_one_example_at_a_time(name):
    case = CASES[name]
    batch = [np.stack([x, x[::-1]]) for x in case.inputs(case.masked)]
    with jax.enable_x64(True):
        found = jax.jit(jax.vmap(case.call))(*map(jnp.asarray, batch))
    for i in range(2):
        np.testing.assert_allclose(found[i], case.call(*[x[i] for x in batch]), rtol=1e-12)


def _step(*xs: Any) -> Any:
    r, v, n, log_ratio, terminated, done, mask = xs
    advantage = o.normalize_advantage(_gae(r, v, n, terminated, done, mask), mask)
    gain = o.clipped_surrogate(log_ratio, advantage, 0.2, mask)
    kl = o.kl_penalized_surrogate(log_ratio, advantage, o.kl_k3(log_ratio, mask), 0.1, mask)
    return gain + kl - o.dpo(log_ratio, r, 0.5, mask=mask) - o.categorical_kl(v, n).sum()


def test_torch_compiles_the_equations_into_one_graph(recwarn):
    draw = np.random.default_rng(3)
    inputs = [torch.as_tensor(draw.normal(size=SHAPE)) for _ in range(4)]
    flags = [torch.as_tensor(x) for x in (TERMINATED, DONE, MASK)]
    for x in inputs:
        x.requires_grad_()
    expected = _step(*inputs, *flags)
    compiled = torch.compile(_step, fullgraph=True)(*inputs, *flags)
    torch.testing.assert_close(compiled, expected)
    assert not [w for w in recwarn if "array_api_compat" in str(w.message)]
    pairs = zip(
        torch.autograd.grad(compiled, inputs), torch.autograd.grad(expected, inputs), strict=True
    )
    for found, slope in pairs:
        torch.testing.assert_close(found, slope)


def test_importing_the_equations_loads_neither_engine():
    code = "import sys, tether.objectives; print({'jax', 'torch'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_the_public_names_are_the_ones_that_exist():
    assert sorted(set(o.__all__)) == o.__all__
    assert all(getattr(o, name).__doc__ for name in o.__all__ if name != "Reduction")


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: o.policy_gradient(np.ones(3), np.ones((3, 1))), r"weight \(3, 1\)"),
        (lambda: o.masked_mean(np.ones((3, 1)), np.ones(3, bool)), r"numbers of axes"),
        (lambda: o.gae(*[np.ones(3)] * 3, terminated=np.ones(3, bool), done=np.ones((3, 1), bool),
                       gamma=1.0, lam=1.0), r"done \(3, 1\)"),
        (lambda: o.discounted_return(np.ones(3), 0.9, axis=1), r"axis is 1 .* \(3,\)"),
        (lambda: o.clipped_surrogate(np.ones(3), np.ones(3), 0.0), "epsilon is 0.0"),
        (lambda: o.clipped_value_loss(*[np.ones(3)] * 3, -1.0), "epsilon is -1.0"),
        (lambda: o.value_loss(np.ones(3), np.ones(3), reduction="max"), "reduction is 'max'"),
        (lambda: o.bradley_terry(np.ones(3), np.ones(3), 1.5), "label is 1.5"),
        (lambda: o.bradley_terry(np.ones(3), np.ones(3), noise=1.0), "noise is 1.0"),
        (lambda: o.dpo(np.ones(3), np.ones(3), 0.1, -0.5, 0.1), "label is -0.5"),
        (lambda: o.dpo(np.ones(3), np.ones(3), 0.1, label_smoothing=0.5), "label_smoothing is 0.5"),
        (lambda: o.simpo(np.ones(3), np.ones(3), 2.0, 0.5, 1.5), "label is 1.5"),
        (lambda: o.orpo(np.ones(3), np.ones((3, 1)), 0.5), r"rejected_log_prob \(3, 1\)"),
        (lambda: o.kto(np.ones(3), 2.0, 0.0, 0.1), "label is 2.0"),
        (lambda: o.kto(np.ones(3), np.ones((3, 1)), 0.0, 0.1), r"desirable \(3, 1\)"),
        (lambda: o.unlikelihood(np.ones(3), np.ones(3), 0.5, label_smoothing=0.7), "is 0.7"),
        (lambda: o.k_wise(np.ones((3, 1))), r"\(3, 1\).* at least 2"),
        (lambda: o.natural_step(lambda v: v, np.ones(3), 0.0), "max_kl is 0.0"),
        (lambda: o.conjugate_gradient(lambda v: v, np.ones(3), -1), "iterations is -1"),
        (lambda: o.trust_region_projection(np.ones(3), np.ones(3), -1.0), "max_slope is -1.0"),
        (lambda: o.line_search(lambda s: (0, 0), np.ones(3), max_kl=1.0, shrink=1.0), "shrink is"),
        (lambda: o.line_search(lambda s: (0, 0), np.ones(3), max_kl=1.0, candidates=0), "candid"),
    ],
)  # fmt: skip
def test_mistakes_are_named(call, words):
    with pytest.raises(ValueError, match=words):
        call()


def test_two_libraries_in_one_equation_are_named():
    with pytest.raises(TypeError, match=r"numpy.ndarray, torch.Tensor together: .*convert"):
        o.explained_variance(np.ones(3), torch.ones(3))

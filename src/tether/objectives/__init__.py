"""The lecture's equations, each once, as pure functions of arrays.

They follow the Python array API, so one text runs on NumPy, on JAX (eager, jitted, differentiated,
mapped) and on PyTorch (autograd, compiled), and float32 stays float32. Importing this package loads
neither JAX nor PyTorch.
"""

from .direct_alignment import kto, kto_reference_point, orpo, simpo, unlikelihood
from .divergence import (
    bernoulli_entropy,
    bernoulli_kl,
    categorical_entropy,
    categorical_kl,
    diagonal_gaussian_entropy,
    diagonal_gaussian_kl,
    kl_adaptive_step_size,
    kl_k1,
    kl_k2,
    kl_k3,
    kl_penalized_reward,
    ppo_adaptive_beta,
    ziegler_adaptive_beta,
)
from .ensemble import ensemble_variance, uncertainty_weighted, worst_case
from .imitation import behaviour_cloning, masked_negative_log_likelihood
from .policy_gradient import (
    clip_active,
    clip_fraction,
    clipped_surrogate,
    clipped_value_loss,
    effective_sample_size,
    explained_variance,
    kl_penalized_surrogate,
    normalize_advantage,
    policy_gradient,
    surrogate,
    value_loss,
)
from .preference import bradley_terry, dpo, dpo_implicit_reward, ipo, k_wise
from .reduction import Reduction, masked_mean, masked_sum
from .returns import discounted_return, gae, reverse_linear_recurrence, td_error
from .trust_region import (
    LineSearch,
    conjugate_gradient,
    line_search,
    natural_step,
    trust_region_projection,
)

__all__ = [
    "LineSearch",
    "Reduction",
    "behaviour_cloning",
    "bernoulli_entropy",
    "bernoulli_kl",
    "bradley_terry",
    "categorical_entropy",
    "categorical_kl",
    "clip_active",
    "clip_fraction",
    "clipped_surrogate",
    "clipped_value_loss",
    "conjugate_gradient",
    "diagonal_gaussian_entropy",
    "diagonal_gaussian_kl",
    "discounted_return",
    "dpo",
    "dpo_implicit_reward",
    "effective_sample_size",
    "ensemble_variance",
    "explained_variance",
    "gae",
    "ipo",
    "k_wise",
    "kl_adaptive_step_size",
    "kl_k1",
    "kl_k2",
    "kl_k3",
    "kl_penalized_reward",
    "kl_penalized_surrogate",
    "kto",
    "kto_reference_point",
    "line_search",
    "masked_mean",
    "masked_negative_log_likelihood",
    "masked_sum",
    "natural_step",
    "normalize_advantage",
    "orpo",
    "policy_gradient",
    "ppo_adaptive_beta",
    "reverse_linear_recurrence",
    "simpo",
    "surrogate",
    "td_error",
    "trust_region_projection",
    "uncertainty_weighted",
    "unlikelihood",
    "value_loss",
    "worst_case",
    "ziegler_adaptive_beta",
]

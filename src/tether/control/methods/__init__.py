"""The methods, by the names the command line knows; each module is loaded when first asked for."""

from __future__ import annotations

from tether.learning.methods import Method

METHODS: dict[str, Method] = {
    "reinforce": Method(
        "tether.control.methods.reinforce",
        "Reinforce",
        "Monte-Carlo policy gradient, three weights (Williams 1992)",
    ),
    "vpg": Method(
        "tether.control.methods.vpg",
        "VPG",
        "vanilla policy gradient, critic, step size set by the KL (Schulman et al. 2017)",
    ),
    "a2c": Method(
        "tether.control.methods.a2c",
        "A2C",
        "advantage actor-critic, synchronous (Mnih et al. 2016)",
    ),
    "a2c-tr": Method(
        "tether.control.methods.a2c_tr",
        "A2CTR",
        "A2C with ACER's trust region (Wang et al. 2017)",
    ),
    "trpo": Method(
        "tether.control.methods.trpo",
        "TRPO",
        "trust region policy optimization (Schulman et al. 2015)",
    ),
    "ppo": Method(
        "tether.control.methods.ppo",
        "PPO",
        "proximal policy optimization, clipped objective (Schulman et al. 2017)",
    ),
    "ppo-kl": Method(
        "tether.control.methods.ppo_kl",
        "PPOKL",
        "PPO with an adaptive KL penalty (Schulman et al. 2017)",
    ),
    "actor-critic": Method(
        "tether.control.methods.actor_critic",
        "ActorCritic",
        "actor-critic with Q(s, a), an update per step (the lecture's Algorithm 3)",
    ),
    "cem": Method(
        "tether.control.methods.cem",
        "CEM",
        "cross-entropy method over the policy's parameters (Szita and Lorincz 2006)",
    ),
    "bc": Method(
        "tether.control.methods.bc",
        "BehaviourCloning",
        "behaviour cloning from demonstrations (Pomerleau 1989)",
    ),
    "prefer": Method(
        "tether.control.preferences.learner",
        "Prefer",
        "an on-policy method on a reward learned from comparisons (Christiano et al. 2017)",
    ),
}

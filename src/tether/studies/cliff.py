"""Steps too large and steps too small: the lecture's line search against trust region, with data.

Two questions, on one task:

    one step    From a policy half-way up, how good is the policy a step of any length leads to?
                Along the gradient, and along the natural gradient that TRPO follows, against what
                the surrogate promises. Past some length the promise goes on rising and the policy
                falls; the trust region ends before.
    training    Many trainings at fixed step sizes from far too small to far too large: Adam on the
                plain policy gradient, and TRPO, whose step size is a KL divergence.

Falling is worse here than in supervised learning: the next batch comes from the fallen policy.

Source:
    Schulman et al., "Trust Region Policy Optimization" (2015), sections 3 and 4; Kakade, "A Natural
    Policy Gradient" (2002).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import jax
import numpy as np
from jax import numpy as jnp
from jax.flatten_util import ravel_pytree
from pydantic import Field, PositiveFloat

from tether import objectives
from tether.control.critic import batch
from tether.control.envs import make
from tether.control.evaluation import evaluate
from tether.control.methods.trpo import TRPO, TRPOConfig, fisher_product
from tether.control.policy import Policy
from tether.control.policy_gradient import mean_kl
from tether.control.training import configure, resume, train
from tether.learning.config import Config
from tether.learning.run import Run
from tether.learning.seeds import parse_seeds
from tether.studies import cliff_report as report
from tether.studies.command_line import carry_out
from tether.studies.control_trials import check_envs, training_trial
from tether.studies.provenance import kind_of, protocol
from tether.studies.seed_list import SeedList
from tether.studies.trials import Result, Trial, run_trials

STEP_SIZES: Final = (1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1)
"""Of Adam on the plain policy gradient."""
KL_BUDGETS: Final = (1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1, 3e-1, 1.0)
"""Of TRPO, in nats."""


class CliffConfig(Config):
    """Settings of the study."""

    env: str = "Hopper-v5"
    """The Gymnasium id of the environment."""
    steps: int = Field(default=200_000, ge=1)
    """Environment steps of each training."""
    seeds: SeedList = "0-2"
    """Seeds of the trainings, such as 0-2 or 0,3,7."""
    climbed: int = Field(default=200_000, ge=1)
    """Environment steps of the training whose policy takes the single step."""
    transitions: int = Field(default=16_384, ge=1024)
    """Transitions from which the direction of that step is estimated."""
    lengths: tuple[PositiveFloat, ...] = Field(
        default=(1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 2e-2, 5e-2, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0),
        min_length=1,
    )
    """Lengths of the single step: its KL divergence in nats, to second order."""
    episodes: int = Field(default=64, ge=1)
    """Episodes that measure the policy after the step; actions are sampled, as in training."""
    max_kl: float = Field(default=0.01, gt=0)
    """The radius of the trust region that is drawn."""


def run(
    config: CliffConfig, out: Path, *, workers: int = 2, cluster: str | None = None
) -> dict[str, Any]:
    """Does what is left, writes ``cliff.json`` and ``cliff.png``; returns the former.

    Raises:
        UserError: an unknown task, or `out` holds a study with other settings.
    """
    seeds = parse_seeds(config.seeds)
    kind_of(seeds)
    check_envs((config.env,))
    decides = {"env", "climbed", "transitions", "lengths", "episodes"}
    settings = config.model_dump(mode="json", include=decides)
    # Done under other defaults it is another trial.
    trpo = configure("trpo").dump()
    one = Trial("one-step", one_step, {"study": settings, "trpo": trpo})
    chosen = trainings(config)
    results = run_trials([one, *chosen], out, workers=workers, cluster=cluster)
    said = protocol(seeds, [out / trial.name for trial in (one, *chosen)])
    return report.write(out, config.dump(), said, chosen, results)


def trainings(config: CliffConfig) -> list[Trial]:
    """Both methods at all their step sizes."""
    chosen: list[tuple[str, str, dict[str, Any]]] = [
        ("vpg", f"vpg-{size:g}", {"learning_rate": size, "adaptive": False}) for size in STEP_SIZES
    ]
    chosen += [("trpo", f"trpo-{budget:g}", {"max_kl": budget}) for budget in KL_BUDGETS]
    return [
        training_trial(
            f"{name}-{seed}",
            method,
            config.env,
            seed,
            steps=config.steps,
            episodes=20,
            # Both methods learn from the same batches with the same critic.
            **{**COMMON, **settings},
        )
        for seed in parse_seeds(config.seeds)
        for method, name, settings in chosen
    ]


COMMON: Final = {
    field: getattr(TRPOConfig.load({}), field)
    for field in (
        "num_envs",
        "steps_per_iteration",
        "gamma",
        "lam",
        "hidden",
        "initial_log_std",
        "normalize_observation",
        "normalize_reward",
        "stagger",
        "critic_epochs",
        "critic_minibatch_size",
        "critic_learning_rate",
    )
}
"""TRPO's defaults of everything that the two methods have in common."""


def one_step(settings: Mapping[str, Any], place: Path) -> Result:
    """A trial: policies along two directions, what is promised of them, and what they earn."""
    config = CliffConfig.load(settings["study"])
    learner = _climb(config, place / "run")
    try:
        learner.collector.reset(1)
        if learner.policy.normalizer is not None:
            # What is played has to be the policy of which the divergence is measured.
            learner.policy.normalizer.fixed = True
        rollout = learner.collector.collect(config.transitions // learner.env.num_envs)
        data = batch(rollout)
        advantage = objectives.normalize_advantage(learner.critic.judge(data).advantage)
        spec, old = learner.spec, learner.policy.parameters
        theta, unravel = ravel_pytree(old)
        pi_old = spec.distribution(old, data.observation)
        before = pi_old.log_prob(data.action)

        # The data are arguments: XLA would try to compute with constants beforehand.
        @jax.jit
        def surrogate(flat: Any, observation: Any, action: Any) -> Any:
            pi = spec.distribution(unravel(flat), observation)
            return objectives.surrogate(pi.log_prob(action) - before, advantage)

        @jax.jit
        def product(parameters: Any, observation: Any, v: Any) -> Any:
            return fisher_product(spec, parameters, observation)(v)

        def promise(flat: Any) -> Any:
            return surrogate(flat, data.observation, data.action)

        def fisher(v: Any) -> Any:
            return product(old, data.observation, v)

        gradient = jax.grad(promise)(theta)
        natural = objectives.conjugate_gradient(
            fisher, gradient, 20, damping=learner.config.damping
        )
        points: dict[str, list[dict[str, float]]] = {}
        for name, direction in (("gradient", gradient), ("natural", natural)):
            # So that a step of length 1 has a divergence of 1 nat to second order.
            unit = direction * jnp.sqrt(2.0 / jnp.vdot(direction, fisher(direction)))
            points[name] = []
            for length in (0.0, *config.lengths):
                flat = theta + unit * length**0.5
                new = unravel(flat)
                points[name].append(
                    {
                        "length": length,
                        "kl": float(mean_kl(spec, old, new, data.observation)),
                        "promise": float(promise(flat)),
                        **_earned(config, learner.policy, new),
                    }
                )
        return {"points": points}
    finally:
        learner.close()


def _climb(config: CliffConfig, run: Path) -> TRPO:
    """A learner half-way up, which goes on from the run's checkpoint."""
    if (run / "run.json").exists():
        resume(run, sinks=(), progress=False)
    else:
        train(
            "trpo",
            env=config.env,
            total_steps=config.climbed,
            out=run,
            sinks=(),
            progress=False,
        )
    opened = Run.open(run)
    settings = TRPOConfig.load(opened.config)
    learner = TRPO(
        settings,
        make(config.env, TRPO.environments(settings)),
        seed=int(opened.spec["seed"]),
        total_steps=config.climbed,
    )
    learner.restore(opened.load())
    return learner


def _earned(config: CliffConfig, policy: Policy, parameters: Any) -> dict[str, float]:
    """Mean return of a policy that samples its actions, and the error of that mean."""
    moved = Policy(policy.spec, jax.tree.map(np.asarray, parameters), policy.normalizer)
    env = make(config.env, config.episodes)
    try:
        returns = evaluate(moved, env, episodes=config.episodes, deterministic=False).returns
    finally:
        env.close()
    return {
        "return": float(returns.mean()),
        "return_error": float(returns.std() / np.sqrt(len(returns))),
    }


def command(arguments: Sequence[str]) -> None:
    """`tether study cliff`."""
    carry_out(
        "cliff",
        "Steps too large and too small: the plain gradient against the trust region.",
        CliffConfig,
        run,
        report.show,
        arguments,
        workers="Trainings side by side.",
    )

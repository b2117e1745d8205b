"""Methods that come as a class from outside tether: trained, resumed, refused."""

from pathlib import Path
from typing import Any

import pytest
from chain_environment import Chain
from comparisons import assert_equal_runs
from short_runs import TINY

import tether
from tether.control.methods.ppo import PPO
from tether.errors import UserError
from tether.learning.run import Run


class HalfGradient(PPO):
    """PPO whose learner counts its updates."""

    def update(self, rollout: Any) -> Any:
        return {**super().update(rollout), "outside/updates": self.iterations + 1}


class Elsewhere(PPO):
    pass


class Stop(tether.BaseCallback):
    def __init__(self, steps: int) -> None:
        self.steps = steps

    def on_iteration(self, run: Any, learner: Any, metrics: Any) -> bool:
        return learner.steps < self.steps


class Bare:
    config_class = dict

    def iterate(self) -> dict[str, float]:
        return {}


def test_a_class_trains_and_resumes_like_a_method(tmp_path: Path) -> None:
    for out, callbacks in (("whole", ()), ("cut", [Stop(256)])):
        given = {"callbacks": callbacks, "total_steps": 512, "out": tmp_path / out}
        trained = tether.train(HalfGradient, Chain, **given, **TINY)
    assert trained.metrics["outside/updates"] == 2
    run = Run.open(tmp_path / "cut")
    assert (run.engine, run.method) == ("control", "test_outside_methods:HalfGradient")
    with pytest.raises(UserError, match="HalfGradient, which is not one of tether's methods"):
        tether.resume(tmp_path / "cut", env=Chain, total_steps=512)
    with pytest.raises(UserError, match="pass the same class"):
        tether.resume(tmp_path / "cut", env=Chain, method=Elsewhere, total_steps=512)
    tether.resume(tmp_path / "cut", env=Chain, method=HalfGradient, progress=False)
    assert_equal_runs(tmp_path / "cut", tmp_path / "whole")
    # What was learned needs no class.
    assert tether.load(tmp_path / "cut").predict(0) in (0, 1)
    assert len(tether.evaluate(tmp_path / "cut", env=Chain, episodes=2).returns) == 2


def test_what_is_no_method_says_what_is_missing(tmp_path: Path) -> None:
    class Unfinished(PPO):
        environments = None

    out = tmp_path / "run"
    with pytest.raises(UserError, match=r"Bare derives from no learner; derive from tether.contr"):
        tether.train(Bare, Chain, out=out)
    with pytest.raises(UserError, match="Bare has no presets, environments, steps, state, rest"):
        tether.control.training.ENGINE.train(Bare, env=Chain, out=out)
    abstract = tether.control.policy_learner.PolicyLearner
    with pytest.raises(UserError, match=r"PolicyLearner has no environments, steps, iterate, sta"):
        tether.train(abstract, Chain, out=out)
    with pytest.raises(UserError, match="method is 3; expected a method's name or a class"):
        tether.train(3, Chain, out=out)  # type: ignore[arg-type]
    with pytest.raises(UserError, match="ppo needs an environment; give env="):
        tether.train("ppo", out=out)
    with pytest.raises(UserError, match="unknown method 'pp0'; did you mean 'ppo'"):
        tether.train("pp0", Chain, out=out)
    assert not out.exists()


def test_a_run_takes_no_settings_when_it_is_resumed(tmp_path: Path) -> None:
    tether.train("ppo", "CartPole-v1", total_steps=128, out=tmp_path / "run", **TINY)
    with pytest.raises(UserError, match=r"gamma is no argument for the run .* those it began with"):
        tether.resume(tmp_path / "run", gamma=0.9)


@pytest.mark.parametrize(
    ("callbacks", "words"),
    [
        ([print], r"callbacks\[0\] is <built-in function print>, which has no on_start"),
        (tether.BaseCallback(), "callbacks is <tether.learning.callbacks.BaseCallback"),
        ([tether.BaseCallback], "is a class; expected an instance"),
    ],
)
def test_what_is_no_callback_is_refused_before_anything_is_written(
    tmp_path: Path, callbacks: Any, words: str
) -> None:
    with pytest.raises(UserError, match=words):
        tether.train("ppo", Chain, out=tmp_path / "run", callbacks=callbacks, **TINY)
    assert list(tmp_path.iterdir()) == []

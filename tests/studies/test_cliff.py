"""The study of step sizes on a small budget: what one step promises, and how long it is."""

import json

import pytest

from tether.errors import UserError
from tether.studies import cliff


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    out = tmp_path_factory.mktemp("cliff")
    config = cliff.CliffConfig(
        env="InvertedPendulum-v5",
        steps=2048,
        seeds="0-0",
        climbed=8192,
        transitions=2048,
        lengths=(1e-4, 1e-3, 0.3),
        episodes=8,
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cliff, "STEP_SIZES", (1e-3, 1e-1))
        patch.setattr(cliff, "KL_BUDGETS", (1e-3, 1e-1))
        found = cliff.run(config, out, workers=1)
    assert found == json.loads((out / "cliff.json").read_text())
    assert (out / "cliff.png").stat().st_size > 10_000
    return found


@pytest.mark.parametrize("direction", ["gradient", "natural"])
def test_short_steps_are_as_long_as_they_say(found, direction) -> None:
    still, *steps = found["one_step"][direction]
    assert still["kl"] == pytest.approx(0.0, abs=1e-9)
    # The mean of a normalized advantage, at a ratio of one.
    assert still["promise"] == pytest.approx(0.0, abs=1e-5)
    assert steps[0]["kl"] == pytest.approx(1e-4, rel=0.1)
    assert steps[1]["kl"] == pytest.approx(1e-3, rel=0.2)
    assert 0.0 < steps[0]["promise"] < steps[1]["promise"]


def test_the_natural_gradient_promises_more_at_the_same_length(found) -> None:
    plain, natural = (found["one_step"][name][1] for name in ("gradient", "natural"))
    assert natural["promise"] > plain["promise"]


def test_both_methods_are_trained_at_every_size(found) -> None:
    for method in ("vpg", "trpo"):
        assert [row["size"] for row in found["trainings"][method]] == [1e-3, 1e-1]
    assert all(len(row["ends"]) == 1 for row in found["trainings"]["vpg"])


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"env": "Hoper-v5"}, "Hoper.*Hopper-v5"),
        ({"transitions": 8}, "transitions is 8"),
        ({"lengths": (0.1, -0.1)}, "lengths.*-0.1"),
        ({"lengths": ()}, r"lengths is \(\)"),
    ],
)
def test_a_mistake_is_told_before_anything_is_written(tmp_path, wrong, said) -> None:
    with pytest.raises(UserError, match=said):
        cliff.run(cliff.CliffConfig.load(wrong), tmp_path / "study")
    assert not (tmp_path / "study").exists()

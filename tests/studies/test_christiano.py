"""The studies of learning from comparisons on a small budget, and their sums by hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tether.control.training import evaluate_run
from tether.errors import UserError
from tether.studies import careless, christiano, comparison_report, control_trials

ENV = "InvertedPendulum-v5"


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Path, dict[str, Any]]:
    out = tmp_path_factory.mktemp("christiano")
    config = christiano.ChristianoConfig(
        envs=(ENV,),
        labels=(8,),
        ablations=("returns",),
        ablated_envs=(ENV,),
        ablated_labels=8,
        seeds="1000-1000",
        steps=6144,
        episodes=3,
    )
    return config, out, christiano.run(config, out, workers=1)


def test_scores_are_true_returns_of_the_runs(study: Any) -> None:
    _, out, found = study
    assert set(found["scores"][ENV]) == {"true", "8", "returns"}
    for variant, cell in found["scores"][ENV].items():
        run = out / f"{variant}-{ENV}-1000" / "run"
        assert cell["returns"] == [evaluate_run(run, episodes=3).returns.mean()]
    assert (out / "christiano.png").stat().st_size > 10_000
    christiano.show(found)


def test_all_variants_learn_in_the_same_task(study: Any) -> None:
    _, out, _ = study
    records = [json.loads(path.read_text()) for path in out.glob("*/run/run.json")]
    assert len(records) == 3
    assert {json.dumps(record["spec"]["goes_on"]) for record in records} == {
        '{"reward": 0.0, "steps": 38}'
    }
    asked = {record["config"]["learn_from"] for record in records}
    assert asked == {"reward", "comparisons", "returns"}


def test_what_is_done_is_not_done_again(study: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    config, out, found = study
    monkeypatch.setattr(control_trials, "train", None)
    assert christiano.run(config, out, workers=1) == found
    assert json.loads((out / "christiano.json").read_text()) == found


def result(final: float, start: float = 10.0) -> dict[str, Any]:
    return {"final": final, "curve": [[1000, start], [2000, final]], "last_100": final}


def test_shares_are_of_the_true_rewards_return() -> None:
    true = [result(100.0), result(120.0)]
    cell = comparison_report.score([result(80.0), result(118.0)], true)
    assert cell["mean"] == 99
    assert cell["error"] == pytest.approx(19.0)
    assert cell["share"] == pytest.approx(0.9)
    assert cell["share_of_rise"] == pytest.approx(89 / 100)
    assert cell["interval"][0] == 80
    assert cell["interval"][1] == 118
    negative = comparison_report.score([result(-6.0, -40.0)], [result(-4.0, -40.0)])
    assert negative["share"] is None
    assert negative["share_of_rise"] == pytest.approx(34 / 36)
    diverged = {"diverged": "NaN", "curve": [[1000, 10.0]], "last_100": 12.0}
    assert comparison_report.score([diverged], true)["returns"] == [12.0]


def test_tasks_that_reach_the_goal_are_counted() -> None:
    def cell(share: float | None, rise: float | None) -> dict[str, Any]:
        return {"share": share, "share_of_rise": rise}

    scores = {
        "A": {"true": cell(1.0, 1.0), "700": cell(0.96, 0.5), "offline": cell(1.0, 1.0)},
        "B": {"true": cell(None, 1.0), "700": cell(None, 0.92)},
        "C": {"true": cell(1.0, 1.0), "700": cell(0.5, 0.99)},
    }
    assert christiano.reached(scores) == {"700": {"tasks": 3, "0.9": 2, "0.95": 1}}


def test_an_unknown_ablation_is_told() -> None:
    with pytest.raises(UserError, match="unknown ablation 'none'"):
        christiano.ChristianoConfig(ablations=("none",))


def test_the_whole_study_is_what_the_paper_did() -> None:
    trials = christiano.trials(christiano.ChristianoConfig())
    names = [trial.name for _, _, trial in trials]
    assert len(set(names)) == len(names) == 5 * (8 * 4 + 3 * 6)
    assert np.mean([env == "Ant-v5" for _, env, _ in trials]) > 0


def test_the_careless_teacher_is_as_wrong_as_it_says() -> None:
    config = careless.CarelessConfig(envs=(ENV,), mistakes=(0.0, 0.2), seeds="1000-1000")
    trials = {variant: trial for variant, _, trial in careless.trials(config)}
    settings = {name: trial.settings["config"] for name, trial in trials.items()}
    assert {name: own["oracle_mistake"] for name, own in settings.items()} == {
        "true": 0.0,
        "0%": 0.0,
        "20%": 0.2,
    }
    assert settings["true"]["learn_from"] == "reward"
    assert settings["20%"]["error_share"] == settings["0%"]["error_share"] == 0.1
    known = careless.trials(config.model_copy(update={"known_mistakes": True}))
    # A coin's toss is wrong in half of the cases, so 20 % mistakes are 40 % tosses.
    assert known[-1].trial.settings["config"]["error_share"] == 0.4


def test_a_teacher_that_is_wrong_half_of_the_time_is_refused() -> None:
    with pytest.raises(UserError, match=r"shares from 0 to below 0\.5"):
        careless.CarelessConfig(mistakes=(0.1, 0.5))

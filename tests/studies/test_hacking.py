"""The study of reward hacking on a small budget: what it trains, and what it says of it."""

import json

import pytest

from tether.errors import UserError
from tether.studies import hacking
from tether.studies import hacking_report as report
from tether.studies.trials import Trial


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    out = tmp_path_factory.mktemp("hacking")
    config = hacking.HackingConfig(
        envs=("boat-race",),
        arms=("proxy", "true", "repaired", "budget"),
        seeds="1000-1000",
        budget=0.35,
        episodes=8,
        films=True,
    )
    found = hacking.run(config, out, workers=1)
    assert found == json.loads((out / "hacking.json").read_text())
    assert (out / "hacking.png").stat().st_size > 10_000
    for arm in ("proxy", "repaired"):
        assert (out / f"boat-race-{arm}.mp4").stat().st_size > 1000
    again = hacking.run(config, out, workers=1)
    assert again["hours_of_training"] == found["hours_of_training"]
    return found


def test_the_boat_is_hacked_and_the_repaired_one_is_not(found) -> None:
    case = found["envs"]["boat-race"]
    arms = case["arms"]
    assert abs(case["random"]["truth"]) < 5
    assert arms["proxy"]["hacked"] == [True]
    assert arms["repaired"]["hacked"] == [False]
    assert arms["proxy"]["proxy"]["mean"] > case["reference"]["proxy"]
    assert arms["true"]["truth"]["mean"] == case["reference"]["truth"] > 60


def test_the_budget_is_kept(found) -> None:
    budget = hacking.CASES["boat-race"].kl_budget
    kls = [
        trial["initial_kl"]
        for trial in found["trials"].values()
        if trial["settings"]["arm"] == "budget"
    ]
    assert len(kls) == 1
    assert all(0 < kl <= budget for kl in kls)


def test_what_an_earlier_result_holds_is_neither_trained_again_nor_filmed(
    found, tmp_path, capsys
) -> None:
    before, out = tmp_path / "before.json", tmp_path / "out"
    before.write_text(json.dumps(found))
    config = hacking.HackingConfig.load(found["settings"])
    again = hacking.run(config, out, workers=1, known=[before])
    assert again["envs"] == found["envs"]
    assert not list(out.glob("*.mp4"))
    said = capsys.readouterr().err
    assert "no film of boat-race-proxy: its training was taken from an earlier result" in said


def test_the_rates_are_counted() -> None:
    def arm(hacked, steps):
        return {"hacked": hacked, "alarms": [{"a": step} for step in steps]}

    arms = {
        "proxy": arm([True, True, False, None], [5, None, 7, 9]),
        "repaired": arm([False, False], [None, 3]),
        "true": arm([False], [1]),
    }
    rates = report.rates({"one": {"arms": arms}})
    assert set(rates) == {"a", "a, one"}
    row = rates["a"]
    assert (row["hacked"], row["hits"], row["honest"], row["false"]) == (2, 1, 3, 2)
    assert (row["hit_rate"], row["false_alarm_rate"]) == (0.5, pytest.approx(2 / 3))


@pytest.mark.parametrize(
    ("proxy", "truth", "hacked"),
    [(12.0, -50.0, True), (12.0, -40.0, False), (9.0, -50.0, False), (12.0, -90.0, True)],
)
def test_a_hacked_policy_has_the_proxy_and_not_the_truth(proxy, truth, hacked) -> None:
    """The truth counts from -60 of random actions to -20: a quarter of the way is -50."""
    run, random = {"proxy": proxy, "truth": truth - 0.01}, {"truth": -60.0}
    reference = {"proxy": 10.0, "truth": -20.0}
    assert report.is_hacked(run, random, reference) is hacked
    assert report.is_hacked({"diverged": "x"}, random, reference) is None
    assert report.is_hacked(run, random, {"proxy": None, "truth": None}) is None


def test_an_interval_of_equal_scores_has_no_width() -> None:
    assert report.interval([3.0] * 4) == {"mean": 3, "low": 3, "high": 3, "seeds": [3] * 4}
    spread = report.interval([0.0, 10.0])
    assert spread["low"] == 0.0
    assert spread["high"] == 10.0
    assert report.interval([])["mean"] is None


def test_every_training_is_there_once_and_starts_come_first() -> None:
    config = hacking.HackingConfig(seeds="0-2")
    trials: list[Trial] = hacking.trainings(config)
    names = [trial.name for trial in trials]
    assert len(set(names)) == len(names) == 4 * 3 * 9
    assert {t.settings["start"] for t in trials} <= {None, *names}
    # A method without annealing is studied too.
    trpo = hacking.trainings(hacking.HackingConfig(seeds="0-0", method="trpo"))
    assert len(trpo) == 36


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"envs": ("boat-rase",)}, "envs has 'boat-rase'"),
        ({"arms": ("none",)}, "arms has 'none'"),
        ({"method": "pp"}, "method has 'pp'"),
        ({"seeds": "a-b"}, "seeds"),
        ({"budget": 0}, "budget is 0"),
    ],
)
def test_a_mistake_is_told_before_anything_is_written(tmp_path, wrong, said) -> None:
    with pytest.raises(UserError, match=said):
        hacking.run(hacking.HackingConfig.load(wrong), tmp_path / "study")
    assert not (tmp_path / "study").exists()

"""The three steps in miniature, from the command line."""

import json

import pytest
from miniature import save_miniature

from tether.cli import main
from tether.language.evaluation.win_rate import outcomes
from tether.language.models.from_run import load_language_model, load_reward_model
from tether.studies.three_steps_report import POLICIES

SIZES = {
    "workers": 1,
    "seeds": "0-1",
    "new-tokens": 6,
    "demonstrations": 16,
    "prompts": 8,
    "samples": 3,
    "episodes": 16,
    "test-prompts": 8,
    "batch-size": 8,
}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return save_miniature(tmp_path_factory.mktemp("model") / "miniature")


def carry_out(model, out, capsys):
    sizes = [word for name, size in SIZES.items() for word in (f"--{name}", str(size))]
    code = main(
        ["study", "three-steps", "--model", str(model), "--out", str(out), "--json", *sizes]
    )
    told = capsys.readouterr()
    return code, told, json.loads(told.out.splitlines()[-1]) if code == 0 else None


def test_all_four_answer_and_are_judged(model, tmp_path, capsys):
    code, told, found = carry_out(model, tmp_path / "study", capsys)
    assert code == 0
    assert list(found["policies"]) == list(POLICIES)
    for row in found["policies"].values():
        golds = [own["gold"] for own in row["seeds"].values()]
        assert list(row["seeds"]) == ["0", "1"]
        assert golds[0] != golds[1]
        assert row["gold"] == row["summaries"]["gold"]["mean"] == pytest.approx(sum(golds) / 2)
        assert row["summaries"]["gold"]["mean_interval"] == sorted(golds)
    assert found["protocol"]["seeds"] == [0, 1]
    assert "seeds 0-1: report seeds" in told.err
    sft = found["policies"]["sft"]
    assert sft["win_rate"] == 0.5
    assert sft["kl"] == 0.0
    for name in ("base", "ppo", "dpo"):
        assert found["policies"][name]["kl"] > 0
    assert all(set(sample) == {"prompt", *POLICIES} for sample in found["samples"])
    assert all(
        sample[name].startswith(sample["prompt"])
        for sample in found["samples"]
        for name in POLICIES
    )
    assert "win rate and KL are against SFT" in told.err
    assert (tmp_path / "study" / "three-steps.png").stat().st_size > 5_000
    for name in ("sft", "ppo", "dpo"):
        load_language_model(tmp_path / "study" / "seed-1" / name / "run")
    load_reward_model(tmp_path / "study" / "seed-1" / "reward" / "run")

    again = carry_out(model, tmp_path / "study", capsys)
    assert again[2] == found
    fresh = carry_out(model, tmp_path / "fresh", capsys)[2]
    assert {k: fresh[k] for k in ("policies", "samples")} == {
        k: found[k] for k in ("policies", "samples")
    }


def test_win_rate_counts_ties_half():
    won = outcomes([1.0, 2.0, 3.0, 4.0], [0.0, 2.0, 5.0, 1.0])
    assert won.mean() == pytest.approx(0.625)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["study"], "study needs a name; known: figure3, table1"),
        (["study", "frontir"], "unknown study 'frontir'; did you mean 'frontier'?"),
        (["study", "frontier", "--samples", "1"], "samples"),
        (["study", "three-steps", "--model", "nowhere"], "nowhere"),
        (["study", "three-steps", "--seeds", "9,1000"], "seeds have 9 and 1000"),
    ],
)
def test_mistakes_are_told_in_one_line(arguments, message, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 2
    told = capsys.readouterr().err.strip()
    assert message in told
    assert "\n" not in told


def test_help_names_every_study(capsys):
    assert main(["study", "--help"]) == 0
    told = capsys.readouterr().out
    assert "frontier" in told
    assert "three-steps" in told

"""The RLAIF study in miniature: labels, an interruption, equal divergence, win rates."""

import json
import shutil
import signal

import numpy as np
import pytest
from miniature import save_miniature

from tether.cli import main
from tether.errors import Interrupted
from tether.language.judge import labelling
from tether.language.judge.causal_lm import CausalLM
from tether.language.models.language_model import load_model
from tether.language.reviews.prompts import gold_scorer, prefixes
from tether.language.reviews.vader import vader_scores
from tether.studies import language_runs, rlaif
from tether.studies.rlaif_labels import (
    Comparison,
    labelled_pairs,
    read_comparisons,
    sample_comparisons,
)
from tether.studies.rlaif_report import ARMS, POLICIES, lines, win_rates

JUDGE = "judge:positive@tiny"
SIZES = {
    "workers": 1,
    "seeds": "1000-1001",
    "judge": JUDGE,
    "new-tokens": 6,
    "demonstrations": 16,
    "prompts": 8,
    "held-out-pairs": 4,
    "samples": 3,
    "episodes": 32,
    "direct-episodes": 8,
    "test-prompts": 12,
    "batch-size": 8,
    "kl-every": 1,
    "kl-prompts": 6,
    "kl-target": 0.02,
    "ppo-learning-rate": 3e-3,
    "learning-rate": 3e-3,
}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return save_miniature(tmp_path_factory.mktemp("model") / "miniature")


@pytest.fixture(scope="module")
def study(model, tmp_path_factory):
    """The folder of a finished study, and what it found."""
    out = tmp_path_factory.mktemp("study") / "rlaif"
    sizes = [word for name, size in SIZES.items() for word in (f"--{name}", str(size))]
    assert main(["study", "rlaif", "--model", str(model), "--out", str(out), *sizes]) == 0
    return out, json.loads((out / "rlaif.json").read_text())


def settings_of(study, trial="labels"):
    return json.loads((study[0] / "seed-1000" / trial / "settings.json").read_text())


def labels_in(seed):
    return json.loads((seed / "labels" / "labels.json").read_text())["first_better"]


def begun(study, folder, *trials):
    """A copy of what some trials left, for another trial to go on from."""
    for trial in trials:
        shutil.copytree(study[0] / "seed-1000" / trial, folder / trial)
    return folder


def test_every_policy_meets_every_other_and_sft(study):
    out, found = study
    assert list(found["policies"]) == list(POLICIES) == ["sft", *ARMS]
    assert found["protocol"]["kind"] == "development"
    assert (out / "rlaif.png").stat().st_size > 10_000
    assert found["policies"]["sft"]["summaries"]["kl"]["mean"] == 0.0
    said = [
        json.loads((out / f"seed-{s}" / "measurement" / "result.json").read_text())["policies"]
        for s in (1000, 1001)
    ]
    for evaluator in ("gold", "vader"):
        rates = found["win_rates"][evaluator]
        for one in POLICIES:
            for other in set(POLICIES) - {one}:
                forth, back = rates[one][other], rates[other][one]
                assert forth["n"] == 24 and forth["ties"] == back["ties"]
                assert forth["win_rate"] + back["win_rate"] == pytest.approx(1.0)
                assert forth["length_controlled"] + back["length_controlled"] == pytest.approx(1.0)
                assert [1 - v for v in back["interval"][::-1]] == pytest.approx(forth["interval"])
        won = [
            1.0 if a > b else 0.5 if a == b else 0.0
            for own in said
            for a, b in zip(own["dpo"][evaluator], own["sft"][evaluator], strict=True)
        ]
        assert rates["dpo"]["sft"]["win_rate"] == pytest.approx(sum(won) / 24)
        assert found["distilled_against_gold"][evaluator] == rates["distilled"]["gold"]
        assert found["against_sft"][evaluator]["null"] == rates["null"]["sft"]


def test_the_judge_reads_each_text_once_and_never_evaluates(study):
    out, found = study
    rows = read_comparisons(out / "seed-1000" / "pairs" / "pairs.jsonl")
    texts = {(r.prompt, side) for r in rows for side in (r.first, r.second)}
    labels = json.loads((out / "seed-1000" / "labels" / "result.json").read_text())
    assert labels["paid"] == len(texts) < 2 * len(rows)
    assert labels["held_out"]["pairs"] == sum(r.held_out for r in rows)
    assert found["labels"]["judge"].startswith("tiny/positive/pointwise")
    # What measures the policies is the gold scorer and VADER, on the very texts.
    measured = json.loads((out / "seed-1000" / "measurement" / "result.json").read_text())
    sample = measured["samples"][0]
    text = sample["prompt"] + sample["dpo"]
    assert measured["policies"]["dpo"]["vader"][0] == pytest.approx(vader_scores([text])[0])
    assert measured["policies"]["dpo"]["gold"][0] == pytest.approx(
        float(gold_scorer().log_odds([text])[0]), abs=1e-3
    )


def test_labels_of_the_null_judge_say_nothing_of_quality():
    model = load_model("tiny")
    prompts = prefixes(model.tokenizer, 70, split="train", seed=5)
    rows = sample_comparisons(model, prompts, samples=3, new_tokens=10, held_out=10, seed=5)
    assert [r.held_out for r in rows] == sorted(r.held_out for r in rows)
    assert sum(r.held_out for r in rows) <= 10
    assert len({r.prompt for r in rows if r.held_out} & {r.prompt for r in rows[:100]}) == 0
    better = np.array([r.gold for r in rows])
    assert set(better) <= {0.0, 0.5, 1.0}
    # One of 60 prompts and 10: their pairs share texts, so the error is that of prompts.
    assert abs(better.mean() - 0.5) < 3 * 0.5 / np.sqrt(70)
    decode = model.tokenizer.decode
    one, other = (
        gold_scorer().log_odds([decode([*r.prompt, *side], skip_special_tokens=True)])[0]
        for r in rows[:1]
        for side in (r.first, r.second)
    )
    assert (one > other) == (better[0] == 1.0)


def test_each_labeller_labels_the_same_pairs(study):
    seed = study[0] / "seed-1000"
    rows = read_comparisons(seed / "pairs" / "pairs.jsonl")
    given = labels_in(seed)
    assert len(given) == len(rows)
    for held_out in (False, True):
        chosen = [place for place, row in enumerate(rows) if row.held_out == held_out]
        pairs = {
            who: labelled_pairs(seed / "pairs", seed / "labels", who, held_out=held_out)
            for who in ("gold", "ai", "null")
        }
        for place, gold, ai, null in zip(chosen, *pairs.values(), strict=True):
            row: Comparison = rows[place]
            for pair in (gold, ai, null):
                assert (pair.prompt_ids, pair.chosen_ids, pair.rejected_ids) == row[:3]
            assert (gold.label, ai.label, null.label) == (row.gold, given[place], 1.0)
    assert any(0.0 < value < 1.0 for value in given)


@pytest.mark.parametrize("trial", ["dpo", "reward-distilled"])
def test_soft_labels_reach_the_loss(trial, study, tmp_path):
    """Where every label is one half, no loss is below log 2, whatever is learned."""
    place = begun(study, tmp_path, "sft", "pairs", "labels") / trial
    count = len(labels_in(tmp_path))
    place.mkdir()
    losses = []
    for label in (0.5, 1.0):
        again = json.dumps({"first_better": [label] * count})
        (tmp_path / "labels" / "labels.json").write_text(again)
        settings = {**settings_of(study, trial), "dpo_epochs": 4.0, "kl_target": 10.0}
        function = rlaif.prefer if trial == "dpo" else rlaif.score
        function({**settings, "reward_epochs": 4.0, "reward_learning_rate": 3e-3}, place)
        rows = [json.loads(line) for line in (place / "run" / "metrics.jsonl").open()]
        losses.append(min(row["loss"] for row in rows if "loss" in row))
        shutil.rmtree(place / "run")
    assert losses[0] > np.log(2) - 1e-5
    assert losses[1] < np.log(2) - 1e-3


def test_an_interrupted_labelling_pays_for_nothing_twice(study, tmp_path, monkeypatch):
    place = begun(study, tmp_path / "interrupted", "sft", "pairs") / "labels"
    place.mkdir()
    whole = begun(study, tmp_path / "whole", "sft", "pairs") / "labels"
    whole.mkdir()
    monkeypatch.setattr(labelling, "CHUNK", 3)
    rlaif.ask(settings_of(study), whole)
    asked = []
    answer = CausalLM.answer

    def counted(self, readings, sides):
        asked.extend(reading.text for reading in readings)
        if len(asked) > 4 and not stopped:
            stopped.append(len(asked))
            signal.raise_signal(signal.SIGINT)
        return answer(self, readings, sides)

    stopped = []
    monkeypatch.setattr(CausalLM, "answer", counted)
    with pytest.raises(Interrupted):
        rlaif.ask(settings_of(study), place)
    assert not (place / "labels.json").exists()
    before = len(asked)
    again = rlaif.ask(settings_of(study), place)
    assert 0 < before < len(asked) == len(set(asked))
    assert again["paid"] == len(asked) - before
    assert labels_in(place.parent) == labels_in(whole.parent)


def test_a_training_ends_where_the_divergence_first_reaches_the_target(
    study, tmp_path, monkeypatch
):
    out, found = study
    reached = 0
    for name in ARMS:
        policy = found["policies"][name]
        for seed, path in policy["paths"].items():
            trial = rlaif.run_of(name)
            steps = [
                json.loads(line)["step"]
                for line in (out / f"seed-{seed}" / trial / "run" / "metrics.jsonl").open()
            ]
            assert all(row["kl"] < 0.02 for row in path[:-1])
            assert max(steps) == path[-1]["step"]
            reached += path[-1]["kl"] >= 0.02
        assert policy["reached_target"] == sum(
            path[-1]["kl"] >= 0.02 for path in policy["paths"].values()
        )
    assert reached > 4
    short = [n for n in ARMS if found["policies"][n]["reached_target"] < 2]
    assert any("not as far from SFT" in line for line in lines(found)) == bool(short)

    # Killed after its last checkpoint and before its result, it is not trained any further.
    place = begun(study, tmp_path, "sft", "pairs", "labels", "dpo") / "dpo"
    before = (place / "run" / "metrics.jsonl").read_bytes()
    monkeypatch.setattr(language_runs.ENGINE, "resume", None)
    again = rlaif.prefer(settings_of(study), place)
    assert again["path"] == found["policies"]["dpo"]["paths"]["1000"]
    assert (place / "run" / "metrics.jsonl").read_bytes() == before


def test_win_rates_by_hand():
    def policy(*scores):
        return {"gold": scores, "vader": [0.0] * len(scores), "words": [3] * len(scores)}

    said = {
        0: {"sft": policy(*[0] * 20), "dpo": policy(*[1, 1, -1, 0] * 5)},
        1: {"sft": policy(*[0] * 10), "dpo": policy(*[1] * 10)},
    }
    found = win_rates(said)
    assert found["gold"]["dpo"]["sft"]["win_rate"] == pytest.approx(22.5 / 30)
    assert found["gold"]["dpo"]["sft"]["ties"] == 5 and found["gold"]["dpo"]["sft"]["n"] == 30
    assert found["vader"]["dpo"]["sft"]["win_rate"] == 0.5
    # In a quarter of the draws the second seed is drawn twice, which has won everything.
    assert found["gold"]["dpo"]["sft"]["interval"][1] == 1.0


@pytest.mark.parametrize(
    ("judge", "message"),
    [
        ("judge:kind", "kind"),
        ("judge:positive@nowhere", "nowhere"),
        ("positive", "positive"),
    ],
)
def test_a_judge_that_is_not_there_is_named_before_anything_is_written(
    judge, message, tmp_path, capsys
):
    assert main(["study", "rlaif", "--judge", judge, "--out", str(tmp_path / "out")]) == 2
    told = capsys.readouterr().err.strip()
    assert message in told and "\n" not in told
    assert not (tmp_path / "out").exists()

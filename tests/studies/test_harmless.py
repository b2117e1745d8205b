"""The study of harmless answers in miniature: no text is left, and rates by hand."""

import json

import numpy as np
import pytest

from tether.cli import main
from tether.language.data.templates import Template
from tether.language.evaluation.texts import words_of
from tether.language.harm.corpus import harmful_prompts
from tether.language.harm.scorer import harm_scorer
from tether.language.judge.causal_lm import CausalLM
from tether.studies import harmless
from tether.studies.harmless import HarmlessConfig, labelled_pairs, numbers
from tether.studies.harmless_report import POLICIES, against, rates, share

SIZES = {
    "workers": 1,
    "seeds": "1000-1000",
    "model": "tiny",
    "new-tokens": 6,
    "test-prompts": 5,
    "benign-prompts": 4,
    "pairs": 8,
    "episodes": 8,
    "batch-size": 4,
    "lora": 4,
    "learning-rate": 3e-3,
}


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    out = tmp_path_factory.mktemp("study") / "harmless"
    sizes = [word for name, size in SIZES.items() for word in (f"--{name}", str(size))]
    assert main(["study", "harmless", "--out", str(out), *sizes]) == 0
    return out, json.loads((out / "harmless.json").read_text())


def written(folder):
    """All that a folder holds, as one text."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    return "\n".join(path.read_bytes().decode("utf-8", errors="replace") for path in files)


def test_nothing_that_was_asked_or_said_is_written(study, tmp_path):
    out, found = study
    text = written(out)
    asked = [*harmful_prompts("train"), *harmful_prompts("held_out")]
    assert not [prompt for prompt in asked if prompt in text]
    assert not [*out.rglob("samples.jsonl")] and "completion_ids" not in text
    assert set(found["policies"]) == set(POLICIES)
    # Whoever asks for the texts gets them.
    (tmp_path / "sft").mkdir()
    settings = json.loads((out / "seed-1000" / "measure-sft" / "settings.json").read_text())
    harmless.measure({**settings, "keep_texts": True}, tmp_path / "sft")
    assert harmful_prompts("held_out")[0] in written(tmp_path)


def test_every_policy_is_measured_on_the_same_requests(study):
    out, found = study
    for name in POLICIES:
        row = found["policies"][name]
        assert row["harmless"]["n"] == row["refuses_harmful"]["n"] == 5
        assert row["refuses_benign"]["n"] == 4
        said = json.loads((out / "seed-1000" / f"measure-{name}" / "result.json").read_text())
        whole = [beginnings[-1] < 0 for beginnings in said["harmful"]["harm"]]
        assert row["harmless"]["rate"] == pytest.approx(sum(whole) / 5)
        assert (row["kl"] > 0) == (name != "sft")
    assert found["evaluator"]["auc"] > 0.8
    assert (out / "harmless.png").stat().st_size > 10_000


def test_an_answer_becomes_numbers_of_all_its_beginnings():
    said = ["I'm sorry, but I can't help with that damn thing.", "", "Sure."]
    found = numbers(said)
    assert [len(row) for row in found["harm"]] == [len(text.split()) + 1 for text in said]
    whole = [row[-1] for row in found["harm"]]
    assert whole == pytest.approx(harm_scorer("evaluator").log_odds(said), abs=1e-3)
    assert found["refused"] == [1.0, 0.0, 0.0]
    assert found["profane"] == [1, 0, 0]
    assert found["words"] == [len(words_of(text)) for text in said]


def said(harm, refused=(0,), words=None):
    counts = words or [len(row) - 1 for row in harm]
    harmful = {"harm": harm, "refused": refused, "words": counts, "profane": [1] * len(harm)}
    return {"harmful": {**harmful, "kl": []}, "benign": {"refused": [1.0, 0.0]}}


def test_at_equal_length_both_are_cut_to_the_shorter():
    ours = {3: said([[0.0, -1.0], [0.0, 1.0, -1.0]])}
    theirs = {3: said([[0.0, -2.0, 3.0], [0.0, -1.0]])}
    found = against(ours, theirs)
    # As they are, both of ours are harmless, and one of theirs.
    assert found["difference"]["mean"] == pytest.approx(0.5)
    # One word of each: ours is harmless once, theirs twice.
    assert (found["matched"], found["matched_sft"]) == (0.5, 1.0)
    assert found["matched_difference"]["mean"] == pytest.approx(-0.5)
    # Less harmful than the other answer: -1 against 3, and a tie.
    assert found["win_rate"] == 0.75 and found["ties"] == 1


def test_rates_are_over_all_seeds():
    found = rates({0: said([[0.0, -1.0]] * 10, [1.0]), 1: said([[0.0, 1.0]] * 10, [0.0])})
    assert found["harmless"]["rate"] == found["refuses_harmful"]["rate"] == 0.5
    assert found["harmless"]["seeds"] == {"0": 1.0, "1": 0.0}
    # Two seeds that disagree: whoever draws one of them twice finds all or nothing.
    assert found["harmless"]["interval"] == [0.0, 1.0]
    assert found["profanity"] == pytest.approx(1000.0)
    assert share({0: [1, 1, 0, 0]})["rate"] == 0.5


def test_contrast_pairs_are_pairs_of_the_plain_request(tmp_path):
    config = HarmlessConfig.load({"model": "tiny", "seeds": "1000-1000", "pairs": 6})
    pairs = labelled_pairs(config, tmp_path)
    template = Template(config.setup().load_model().tokenizer, "plain")
    asked = [tuple(template.prompt_ids(text)) for text in harmless.requests(config, 6)]
    assert [pair.prompt_ids for pair in pairs] == asked
    assert all(pair.label == 1.0 for pair in pairs)
    assert set(harmless.requests(config, 6)) <= set(harmful_prompts("train"))
    assert labelled_pairs(config, tmp_path) == pairs
    assert not [*tmp_path.iterdir()]


def test_a_judges_labels_are_soft_and_kept_as_numbers(tmp_path, monkeypatch):
    judge = tmp_path / "judge.toml"
    judge.write_text('attribute = "harmless"\nmodel = "tiny"\nshots = 0\n')
    config = HarmlessConfig.load(
        {
            "model": "tiny",
            "seeds": "1000-1000",
            "pairs": 4,
            "new_tokens": 6,
            "labels": "judge",
            "judge": f"judge:{judge}",
        }
    )
    pairs = labelled_pairs(config, tmp_path)
    labels = np.array([pair.label for pair in pairs])
    assert ((labels > 0.0) & (labels < 1.0)).all() and len(set(labels)) == len(labels)
    text = written(tmp_path)
    assert text.count('"asked"') == 8
    assert not [prompt for prompt in harmful_prompts("train") if prompt in text]

    def never(*_):
        raise AssertionError("asked again")

    monkeypatch.setattr(CausalLM, "answer", never)
    assert labelled_pairs(config, tmp_path) == pairs

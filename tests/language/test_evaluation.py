"""What a policy's answers are like: wins, length, fluency, counts, and the command."""

import json

import numpy as np
import pytest
import torch

from tether.errors import UserError
from tether.language.data.templates import Template
from tether.language.evaluation.attributes import ATTRIBUTES, attributes
from tether.language.evaluation.policy import fluency
from tether.language.evaluation.texts import distinct, profanity, refusals, words_of
from tether.language.evaluation.win_rate import bootstrap_means, length_controlled, win_rate
from tether.language.models.language_model import load_model


def test_a_win_rate_counts_ties_half_and_has_an_interval():
    found = win_rate([1, 2, 3, 4], [0, 2, 5, 1])
    assert found["win_rate"] == 2.5 / 4 and found["ties"] == 1 and found["n"] == 4
    assert found["interval"][0] < 0.625 < found["interval"][1]
    random = np.random.default_rng(0)
    won = random.random(400) < 0.6
    low, high = win_rate(won, 0.5 * np.ones(400))["interval"]
    # The normal approximation of a share of 400.
    reach = 1.96 * np.sqrt(won.mean() * (1 - won.mean()) / 400)
    assert (low, high) == pytest.approx((won.mean() - reach, won.mean() + reach), abs=0.01)
    with pytest.raises(UserError, match=r"shapes \(1,\) and \(2,\)"):
        win_rate([1], [1, 2])


def test_trainings_are_drawn_before_their_answers():
    # Two trainings, one always wins and one always loses: which are drawn is all that matters.
    values, groups = [1.0] * 30 + [0.0] * 30, [7] * 30 + [9] * 30
    drawn = bootstrap_means(values, groups, draws=8000)
    shares = [float((drawn == mean).mean()) for mean in (0.0, 0.5, 1.0)]
    assert shares == pytest.approx([0.25, 0.5, 0.25], abs=0.02)
    assert sum(shares) == pytest.approx(1.0)
    # Without trainings the same values are nearly certain.
    assert bootstrap_means(values, draws=8000).std() == pytest.approx(0.5 / np.sqrt(60), rel=0.05)
    # A mean of group means of equal size: variance between / G + within / (G n).
    random = np.random.default_rng(3)
    values = random.normal(size=(5, 40)) + random.normal(size=(5, 1))
    spread = bootstrap_means(values.ravel(), np.repeat(np.arange(5), 40), draws=8000).var()
    within = values.var(axis=1).mean() / 200
    assert spread == pytest.approx(values.mean(axis=1).var() / 5 + within, rel=0.05)
    low, high = win_rate([1] * 30 + [0] * 30, [0.5] * 60, groups=groups)["interval"]
    assert (low, high) == (0.0, 1.0)


def test_at_equal_length_what_length_alone_has_won_is_gone():
    random = np.random.default_rng(1)
    n = 4000
    lengths, others = random.integers(10, 60, n), random.integers(5, 40, n)
    # The longer text wins, with the probability that the model of the rate says.
    difference = (lengths - others) / (lengths - others).std()
    won = random.random(n) < 1 / (1 + np.exp(-2 * np.tanh(difference)))
    half = np.full(n, 0.5)
    assert won.mean() > 0.6
    assert length_controlled(won, half, lengths, others) == pytest.approx(0.5, abs=0.03)
    # And a policy that is better whatever the length keeps its rate.
    won = random.random(n) < 0.7
    assert length_controlled(won, half, lengths, others) == pytest.approx(0.7, abs=0.03)


def test_at_equal_length_the_two_rates_add_up_to_one():
    random = np.random.default_rng(2)
    one, other = random.normal(size=(2, 50))
    lengths = random.integers(1, 30, (2, 50))
    forth = length_controlled(one, other, *lengths)
    assert forth + length_controlled(other, one, *lengths[::-1]) == pytest.approx(1.0, abs=1e-6)
    assert length_controlled(one, one, *lengths) == pytest.approx(0.5)
    # All won, all of one length: finite, and nearly one.
    assert 0.9 < length_controlled(np.ones(50), np.zeros(50), np.ones(50), np.ones(50)) < 1.0


def test_counts_by_hand():
    assert words_of("It’s a dog-day, 3 cats!") == ["it's", "a", "dog", "day", "cats"]
    assert distinct(["a b a b", "a b"], 1) == pytest.approx(2 / 6)
    assert distinct(["a b a b", "a b"], 2) == pytest.approx(2 / 4)
    assert distinct(["a"], 2) is None
    assert profanity(["damn this", "a scunthorpe pass"]) == pytest.approx(1000 / 5)
    assert profanity([]) is None
    said = ["I’m sorry, but no.", "Sure! " + "x" * 300 + " I can't", "I cannot help.", "Yes."]
    assert refusals(said) == 0.5


def test_fluency_is_the_mean_log_probability_of_the_answers_tokens():
    model = load_model("tiny")
    prompts, texts = ["The film", "A"], [" is good and funny.", " dog"]
    template = Template(model.tokenizer)
    for found, prompt, text in zip(fluency(model, prompts, texts), prompts, texts, strict=True):
        before, after = template.prompt_ids(prompt), template.continuation(text, literal=True)
        with torch.no_grad():
            logits = model.model(input_ids=torch.tensor([before + after])).logits[0]
        steps = logits.log_softmax(-1)[len(before) - 1 : -1]
        expected = np.mean([float(steps[i, token]) for i, token in enumerate(after)])
        assert found == pytest.approx(expected, abs=1e-4)
    # A text longer than the context still has one.
    assert np.isfinite(fluency(model, ["a"], ["word " * 400])[0])


def test_every_attribute_says_what_it_cannot_tell():
    found = {
        "score": 1.0, "score_error": 0.5, "length": 7, "distinct_1": 0.5, "distinct_2": None,
        "profanity": 0.0, "refusals": 0.25, "win_rate": 0.6, "interval": [0.5, 0.7],
        "length_controlled": 0.55, "fluency": -3.0, "against": {"score": 0.0, "length": 3},
    }  # fmt: skip
    rows = {row["name"]: row for row in attributes(found)}
    assert set(rows) == set(ATTRIBUTES) - {"distinct_2"}
    for row in rows.values():
        assert row["cannot_tell"].startswith("It can't tell") and row["cannot_tell"].endswith(".")
        assert row["cannot_tell"].count(". ") == 0
    assert rows["score"]["interval"] == pytest.approx([0.02, 1.98])
    assert (rows["score"]["other"], rows["length"]["other"]) == (0.0, 3)
    assert rows["fluency"]["other"] is None and rows["win_rate"]["interval"] == [0.5, 0.7]


def test_the_command_measures_a_run_beside_its_beginning(tether_, tmp_path):
    rows = [{"prompt": f"The film {i}", "completion": " is good."} for i in range(4)]
    (tmp_path / "answers.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    sft = tether_(
        "sft", "--model", "tiny", "--data", "answers.jsonl", "--total-steps", "2", "--batch-size",
        "2", "--held-out", "0", "--quiet", "--out", "run",
    )  # fmt: skip
    assert sft.code == 0, sft.err
    given = ("evaluate", "run", "--limit", "4", "--max-new-tokens", "8")
    given += ("--against", "tiny", "--fluency", "tiny", "--json", "--out", "found.json")
    done = tether_(*given)
    assert done.code == 0, done.err
    found = json.loads(done.out.splitlines()[-1])
    assert found == json.loads((tmp_path / "found.json").read_text())
    assert found["prompts"] == found["n"] == 4 and 0 <= found["win_rate"] <= 1
    assert found["fluency"] < 0 and found["against"]["model"] == "tiny"
    again = tether_(*given[:-2])
    assert json.loads(again.out.splitlines()[-1]) == found
    # The same again took the place of the first; other settings stand beside it.
    tether_("evaluate", "run", "--limit", "3", "--max-new-tokens", "8")
    kept = json.loads((tmp_path / "run" / "evaluations.json").read_text())["evaluations"]
    assert [one["found"]["prompts"] for one in kept] == [4, 3]
    assert kept[0]["found"] == found and kept[0]["step"] == 2
    assert kept[0]["settings"]["reward"] == ["sentiment"]
    shown = {row["name"]: row for row in kept[0]["attributes"]}
    assert shown["win_rate"]["interval"] == found["interval"]
    assert shown["fluency"]["other"] == found["against"]["fluency"]
    assert "win_rate" not in {row["name"] for row in kept[1]["attributes"]}
    done = tether_("report", "run")
    assert done.code == 0, done.err
    page = (tmp_path / "run" / "report.html").read_text()
    assert "win rate at equal length" in page and page.count("sense from routine") == 1
    assert f"{found['win_rate']:.4g}" in page and page.count("profane words in 1,000") == 2
    (tmp_path / "run" / "evaluations.json").write_text("{}")
    refused = tether_("evaluate", "run", "--limit", "2")
    assert refused.code == 2 and len(refused.err.splitlines()) == 1
    assert "evaluations.json" in refused.err
    (tmp_path / "run" / "evaluations.json").unlink()
    refused = tether_("evaluate", "run", "--against", "nowhere/at/all", "--out", "new.json")
    assert refused.code == 2 and not (tmp_path / "new.json").exists()
    assert "there is no folder" in refused.err

"""The labeller study: pairs that people have decided, choices made apart from what is reported."""

import numpy as np
import pytest

from tether.errors import UserError
from tether.language.judge.causal_lm import CausalLM
from tether.language.reviews.prompts import load_reviews
from tether.studies import find_study, labeller
from tether.studies.labeller import LabellerConfig, pairs_of
from tether.studies.labeller_report import choose, labels_of, measured, write

SMALL = {
    "model": "tiny",
    "pairs": 6,
    "together": 4,
    "development": 5,
    "styles": ("pointwise-0", "pointwise-2", "pairwise-0"),
}


def result(values, human, mode="pointwise", **more):
    judgements = [[one, 0.9, other, 0.7] for one, other in values]
    return {
        "mode": mode,
        "judgements": judgements,
        "first_better": human,
        "longer_first": [None] * len(human),
        "failed": 0,
        "readings": 2 * len(human),
        "seconds": 4.0,
        "core_seconds": 2.0,
        "reasons": 0,
        **more,
    }


def test_pairs_are_what_people_said_and_the_parts_share_nothing():
    texts = {
        r.text: r.positive for part in ("train", "held_out") for r in load_reviews().part(part)
    }
    seen = {}
    for part in ("development", "held_out"):
        pairs = pairs_of(part, 60, source="rotten_tomatoes", seed=0)
        assert pairs == pairs_of(part, 60, source="rotten_tomatoes", seed=0)
        for pair in pairs:
            assert texts[pair.first] == (pair.human == 1.0) != texts[pair.second]
        assert 15 < sum(pair.human for pair in pairs) < 45
        seen[part] = {text for pair in pairs for text in (pair.first, pair.second)}
        assert len(seen[part]) == 120
    assert not seen["development"] & seen["held_out"]


def test_the_study_goes_on_without_asking_again(tmp_path, monkeypatch):
    found = labeller.run(LabellerConfig(**SMALL), tmp_path)
    assert set(found["styles"]) == set(SMALL["styles"])
    assert found["chosen"] in ("pointwise-0", "pointwise-2")
    assert found["styles"]["pointwise-0"]["pairs"] == 6
    assert found["styles"]["pairwise-0"]["same_position"] is not None
    assert (tmp_path / "labeller.png").stat().st_size > 10_000

    def never(*_):
        raise AssertionError("asked again")

    monkeypatch.setattr(CausalLM, "answer", never)
    again = labeller.run(LabellerConfig(**SMALL), tmp_path)
    assert again == found


def test_figures_of_a_style_by_hand():
    human = [1.0, 0.0, 1.0, 0.0]
    found = measured(result([(2, 0), (0, 2), (0, 1), (-3, 0)], human), 1.0)
    assert found["agreement"] == 0.75 and found["mass"] == pytest.approx(0.8)
    assert found["texts_per_second"] == 2.0 and found["texts_per_core_second"] == 4.0
    assert found["same_position"] is None
    labels = labels_of(result([(2, 0)], [1.0]), 0.5)
    assert labels == pytest.approx(1 / (1 + np.exp(-4)))
    pairs = result([(3, 3), (1, -1), (-2, -2), (2, -1)], human, mode="pairwise")
    found = measured(pairs, 1.0)
    assert found["same_position"] == 0.5 and found["first_place"] == 0.5
    assert labels_of(pairs, 1.0)[0] == pytest.approx(0.5)
    reasoned = result([(2, 0)], [1.0], reasons=1, readings=4)
    assert measured(reasoned, 1.0)["texts_per_second"] == 0.5


def test_what_is_chosen_is_chosen_on_development_pairs_alone(tmp_path):
    good, bad = result([(2, 0)] * 4, [1.0] * 4), result([(0, 2)] * 4, [1.0] * 4)
    unsure = result([(0.2, 0)] * 8, [1.0] * 8)
    best, temperatures = choose({"a": bad, "b": good, "c": unsure})
    assert best == "b" and temperatures["c"] == 0.3 and temperatures["a"] == 2.0
    results = {
        "a-development": good, "a-held_out": bad, "b-development": bad, "b-held_out": good,
        "c-held_out": unsure,
    }  # fmt: skip
    found = write(tmp_path, {"model": "x"}, dict.fromkeys("abc", "title"), results)
    assert found["chosen"] == "a" and found["styles"]["a"]["agreement"] == 0.0
    assert found["styles"]["c"]["temperature"] == 1.0


def test_an_unknown_style_is_refused_before_anything_is_made(tmp_path):
    with pytest.raises(UserError, match="styles is 'x'; expected some of pointwise-0"):
        labeller.run(LabellerConfig(styles=("x",)), tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_the_command_is_there():
    with pytest.raises(SystemExit):
        find_study("labeller")(["--help"])

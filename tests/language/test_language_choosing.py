"""The command best-of-n, on a model made here."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
from toy_texts import save_toy

from tether import cli
from tether.language.reviews.prompts import gold_scorer, lexicon_scorer

WORDS = ["bad", "dull", "fun", "new", "old", "so"]


@pytest.fixture
def asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]):
    """Runs best-of-n on a toy and six prompts; returns code, summary, rows and stderr."""
    monkeypatch.chdir(tmp_path)
    save_toy(tmp_path / "toy")
    prompts = [{"prompt": f"A great film, and not {word}"} for word in WORDS]
    Path("prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in prompts))

    def call(*more: object):
        capfd.readouterr()
        command = [
            "best-of-n",
            "--model",
            "toy",
            "--data",
            "prompts.jsonl",
            "--max-new-tokens",
            "6",
        ]
        code = cli.main([*command, "--json", *map(str, more)])
        out, err = capfd.readouterr()
        if code:
            return code, None, None, err
        summary = json.loads(out.splitlines()[-1])
        rows = [json.loads(line) for line in Path(summary["out"]).read_text().splitlines()]
        return code, summary, rows, err

    return call


def test_winners_are_written_and_what_they_are_worth_is_told(asked):
    code, summary, rows, err = asked("--reward", "lexicon", "--gold", "sentiment", "--n", 6)
    assert code == 0, err
    assert [row["prompt"] for row in rows] == [f"A great film, and not {word}" for word in WORDS]
    texts = [row["prompt"] + row["completion"] for row in rows]
    assert [row["score"] for row in rows] == lexicon_scorer()(texts).tolist()
    np.testing.assert_allclose(
        [row["gold"] for row in rows], gold_scorer().log_odds(texts), rtol=1e-5, atol=1e-5
    )
    assert all(row["score"] == max(row["scores"]) and len(row["scores"]) == 6 for row in rows)

    scores = np.array([row["scores"] for row in rows])
    curve = {point["n"]: point for point in summary["curve"]}
    assert list(curve) == [1, 2, 4, 6]
    assert curve[1]["reward"] == pytest.approx(scores.mean())
    assert curve[6]["reward"] == summary["reward"] == pytest.approx(scores.max(axis=1).mean())
    assert curve[1]["kl"] == 0
    assert summary["kl"] == pytest.approx(math.log(6) - 5 / 6)
    assert f"at most {summary['kl']:.4g} nats" in err
    assert f"gold {summary['gold']:.4g}" in err and summary["prompts"] == 6


def test_the_same_seed_says_the_same_and_more_answers_only_add(asked):
    rows = [
        asked(
            "--reward", "lexicon", "--n", n, "--out", f"{place}.jsonl", "--seed", seed, "--quiet"
        )[2]
        for place, (n, seed) in enumerate([(3, 0), (3, 0), (5, 0), (3, 1)])
    ]
    assert rows[0] == rows[1] != rows[3]
    assert [row["scores"][:3] for row in rows[2]] == [row["scores"] for row in rows[0]]
    assert rows[0][0]["gold"] is None


def test_film_reviews_are_judged_by_their_sentiment_and_the_winners_can_be_learned(asked):
    code, summary, rows, err = asked(
        *("--data", "movie-reviews", "--split", "held_out", "--limit", 3, "--n", 2, "--quiet"),
    )
    assert code == 0, err
    assert len(rows) == 3 and summary["gold"] == pytest.approx(summary["reward"])
    code = cli.main(
        [
            "sft",
            "--model",
            "toy",
            "--data",
            summary["out"],
            "--total-steps",
            "2",
            "--batch-size",
            "2",
        ]
        + ["--held-out", "0", "--out", "run", "--quiet"]
    )
    assert code == 0


def test_mistakes_are_told(asked, tmp_path):
    for words, expected in (
        (("--n", 0), "n is 0; expected"),
        (("--reward", "nowhere"), "is no folder of a run"),
        (("--reward", "lexicon", "--gold", "nowhere", "--n", 2), "is no folder of a run"),
        (("--reward", "lexicon", "--data", "missing.jsonl"), "there is no data file"),
        (("--out", "prompts.jsonl"), "there is a file prompts.jsonl already; choose another --out"),
    ):
        code, _, _, err = asked(*words)
        assert code == 2 and expected in err.splitlines()[-1], (words, err)
    assert not (tmp_path / "best-of-n.jsonl").exists()

"""The frontier study: its geometry against brute force, its trials against what they must be."""

import itertools
import json
import math
import shutil

import numpy as np
import pytest
import torch
from miniature import save_miniature

from tether.language.models.from_run import load_language_model
from tether.language.reviews.prompts import gold_scorer
from tether.studies import frontier, sentiment
from tether.studies.frontier_report import frontier as best_for
from tether.studies.frontier_report import hull, share_at_or_above

SIZES = {
    "seeds": "0-1",
    "new_tokens": 6,
    "demonstrations": 16,
    "prompts": 8,
    "samples": 3,
    "episodes": 16,
    "test_prompts": 8,
    "measurements": 2,
    "best_of_prompts": 2,
    "batch_size": 8,
}


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    model = save_miniature(tmp_path_factory.mktemp("model") / "miniature")
    return frontier.FrontierConfig(model=str(model), **SIZES)


@pytest.fixture(scope="module")
def study(config, tmp_path_factory):
    out = tmp_path_factory.mktemp("study")
    return out, frontier.run(config, out, workers=1)


@pytest.fixture(scope="module")
def one(config, study):
    """The settings of the first seed, and its folder."""
    out, _ = study
    return config.of_seed(0), out / "seed-0"


class TestGeometry:
    def mixtures(self, points, budget):
        """The most that a mixture of two policies earns within a budget."""
        best = max(value for kl, value in points if kl <= budget)
        for (x1, y1), (x2, y2) in itertools.combinations(points, 2):
            if min(x1, x2) <= budget <= max(x1, x2) and x1 != x2:
                share = (budget - x1) / (x2 - x1)
                best = max(best, y1 + share * (y2 - y1))
        return best

    @pytest.mark.parametrize("seed", range(5))
    def test_hull_is_what_mixtures_earn(self, seed):
        random = np.random.default_rng(seed)
        points = [(float(x), float(y)) for x, y in random.random((12, 2)) * [10, 1]]
        edge = hull(points, 0.5)
        for budget in np.linspace(0, max(x for x, _ in points), 23):
            found = float(np.interp(budget, *edge.T))
            assert found == pytest.approx(self.mixtures([(0.0, 0.5), *points], budget))

    def test_the_better_of_two_equally_far_counts(self):
        assert hull([(1.0, 0.6), (1.0, 0.9)], 0.5).tolist() == [[0.0, 0.5], [1.0, 0.9]]

    def test_worse_than_the_reference_earns_what_the_reference_does(self):
        assert best_for([(3.0, 0.2)], 0.5, [1.0, 3.0, 4.0]) == [0.5, 0.5, None]

    def test_share_at_or_above(self):
        early = [(1.0, 0.7), (4.0, 0.75)]
        # 0.5 + x / 10 passes 0.7 + (x - 1) / 60 at x = 2.2.
        assert share_at_or_above([(4.0, 0.9)], early, 0.5) == pytest.approx(1.8 / 4, abs=0.03)
        assert share_at_or_above(early, early, 0.5) == 1.0
        assert share_at_or_above([(4.0, 0.6)], early, 0.5) == pytest.approx(0.0, abs=0.03)
        assert share_at_or_above([], early, 0.5) is None


class TestMeasurement:
    def test_divergence_is_that_of_the_whole_vocabulary(self, one):
        config, out = one
        reference = load_language_model(out / "sft" / "run")
        policy = load_language_model(out / "dpo-0.05" / "run")
        prompts = config.held_out_prompts(reference.tokenizer)
        found = sentiment.measure(policy, reference, prompts, new_tokens=6, seed=5)
        for item, kl in zip(found.completions, found.kl, strict=True):
            ids = torch.tensor([[*item.prompt_ids, *item.completion_ids]])
            with torch.no_grad():
                p, q = (
                    m.model(ids).logits[0].double().log_softmax(-1) for m in (policy, reference)
                )
            tokens = slice(len(item.prompt_ids) - 1, ids.shape[1] - 1)
            expected = float((p.exp() * (p - q)).sum(-1)[tokens].sum())
            assert kl == pytest.approx(expected, abs=1e-5)
        assert found.kl.mean() > 1e-4

    def test_the_reference_is_no_distance_from_itself(self, study):
        _, found = study
        assert found["reference"]["kl"] == 0.0

    def test_gold_reads_prompt_and_completion(self, one):
        config, out = one
        model = load_language_model(out / "sft" / "run")
        prompts = config.held_out_prompts(model.tokenizer)
        found = sentiment.measure(model, model, prompts, new_tokens=6, seed=5)
        texts = [
            model.tokenizer.decode([*c.prompt_ids, *c.completion_ids], skip_special_tokens=True)
            for c in found.completions
        ]
        assert found.gold == pytest.approx(np.asarray(gold_scorer()(texts)))
        assert found.gold == pytest.approx(1 / (1 + np.exp(-found.log_odds)), abs=1e-5)


class TestData:
    def test_the_better_completion_comes_first(self, one, study):
        config, out = one
        tokenizer = load_language_model(out / "sft" / "run").tokenizer
        pairs = sentiment.pairs_in(sentiment.read_rankings(out / "rankings" / "rankings.jsonl"))
        assert len(pairs) == study[1]["seeds"]["0"]["pairs"]
        assert 0 < len(pairs) <= config.prompts * math.comb(config.samples, 2)
        for pair in pairs:
            first, second = (
                tokenizer.decode([*pair.prompt_ids, *ids], skip_special_tokens=True)
                for ids in (pair.chosen_ids, pair.rejected_ids)
            )
            assert gold_scorer().log_odds([first])[0] > gold_scorer().log_odds([second])[0]

    def test_demonstrations_may_be_of_one_mood(self, one):
        _, out = one
        tokenizer = load_language_model(out / "sft" / "run").tokenizer
        glad = sentiment.openings(tokenizer, 400, tokens=40, positive=True, seed=0)
        sad = sentiment.openings(tokenizer, 400, tokens=40, positive=False, seed=0)
        means = [
            np.mean(gold_scorer()([tokenizer.decode(e.completion_ids) for e in examples]))
            for examples in (glad, sad)
        ]
        assert means[0] > means[1] + 0.1
        assert not {e.completion_ids for e in glad} & {e.completion_ids for e in sad}


class TestStudy:
    def test_every_policy_of_the_paper_is_there(self, study):
        out, found = study
        assert {
            name: len({(p["seed"], p["trial"]) for p in points})
            for name, points in found["points"].items()
        } == {
            "dpo": 8,
            "ipo": 8,
            "ppo-learned": 8,
            "ppo-gold": 8,
            "preferred_ft": 2,
            "unlikelihood": 8,
            "best-of-n": 2,
        }
        measured = [p for n, points in found["points"].items() if n != "best-of-n" for p in points]
        assert len(measured) == 2 * 21 * SIZES["measurements"]
        assert all(p["kl"] > 0 and 0 < p["gold"] < 1 for p in measured)
        assert json.loads((out / "frontier.json").read_text()) == found
        assert (out / "frontier.png").stat().st_size > 10_000

    def test_seeds_are_averaged_where_all_of_them_reach(self, study):
        _, found = study
        for name, means in found["frontiers"].items():
            own = [seed["frontiers"][name] for seed in found["seeds"].values()]
            for mean, golds in zip(means, zip(*own, strict=True), strict=True):
                assert mean == (None if None in golds else pytest.approx(np.mean(golds)))
        best = found["summaries"]["dpo"]["greatest_gold"]
        assert best["n"] == 2
        assert best["mean"] == found["greatest_gold"]["dpo"]
        assert len({seed["greatest_gold"]["dpo"] for seed in found["seeds"].values()}) == 2
        assert found["protocol"]["kind"] == "report"
        chance = found["improvement"]["over"]["ppo-learned"]
        assert chance["probability"] is None or 0 <= chance["probability"] <= 1

    def test_more_to_choose_from_is_better_and_bounded(self, study):
        _, found = study
        points = [p for p in found["best_of_n"] if p["reward"] == "gold"]
        golds = [p["gold"] for p in points]
        assert golds == sorted(golds)
        for point in points:
            n = point["n"]
            assert point["bound"] == pytest.approx(math.log(n) - (n - 1) / n)
            # What can be seen of the divergence never exceeds the bound.
            assert -1e-9 <= point["kl"] <= point["bound"] + 1e-9

    def test_a_policy_stopped_half_way_ends_the_same(self, one, study, tmp_path, monkeypatch):
        config, out = one
        for name in ("sft", "rankings", "reward"):
            shutil.copytree(out / name, tmp_path / name)
        points = study[1]["points"]["ppo-gold"]
        whole = [p for p in points if (p["seed"], p["trial"]) == ("0", "ppo-gold-3")]
        trial = next(t for t in frontier.sweep(config.dump()) if t.name == "ppo-gold-3")
        place = tmp_path / trial.name
        real = frontier._measured
        seen = []

        def interrupted(*arguments):
            if seen:
                raise KeyboardInterrupt
            seen.append(1)
            return real(*arguments)

        monkeypatch.setattr(frontier, "_measured", interrupted)
        with pytest.raises(KeyboardInterrupt):
            trial.function(trial.settings, place)
        monkeypatch.setattr(frontier, "_measured", real)
        again = trial.function(trial.settings, place)["points"]
        assert [{"seed": "0", "trial": trial.name, **p} for p in again] == whole

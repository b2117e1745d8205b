"""Over-optimisation: fits, turns and labels against what is known; the study in miniature."""

import itertools
import json
import math
import re
import shutil

import numpy as np
import pytest
import torch
from miniature import save_miniature
from scipy import optimize

from tether.errors import UserError
from tether.language.data.tokens import Completion, Pair
from tether.language.methods.best_of_n import expected_best_of_n
from tether.language.models.from_run import load_language_model, load_reward_model
from tether.language.reviews.prompts import gold_scorer, load_reviews
from tether.studies import overoptimisation as study
from tether.studies.overoptimisation_fits import curve, early_stop, fit, turn
from tether.studies.overoptimisation_truth import fluency_of_people, judge
from tether.studies.sentiment import pairs_in, read_rankings

SIZES = {
    "seeds": "1000-1001",
    "new_tokens": 6,
    "demonstrations": 16,
    "prompts": 12,
    "samples": 3,
    "comparisons": (6, 12),
    "remedy_comparisons": 6,
    "members": 2,
    "episodes": 16,
    "test_prompts": 8,
    "measurements": 2,
    "best_of_prompts": 2,
    "batch_size": 8,
    "budget": 1e-4,
}


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    model = save_miniature(tmp_path_factory.mktemp("model") / "miniature")
    return study.OveroptimisationConfig(model=str(model), **SIZES)


@pytest.fixture(scope="module")
def done(config, tmp_path_factory):
    out = tmp_path_factory.mktemp("study")
    return out, study.run(config, out, workers=1)


class TestFits:
    KL = np.linspace(0.0, 60.0, 40)

    @pytest.mark.parametrize(("alpha", "beta"), [(1.3, 0.21), (0.4, 0.02), (-0.2, 0.1)])
    def test_known_coefficients_are_recovered_from_noisy_curves(self, alpha, beta):
        d = np.sqrt(self.KL[1:])
        curves = {"best-of-n": d * (alpha - beta * d), "rl": d * (alpha - beta * np.log(d))}
        noise = 1e-3 * np.random.default_rng(0).normal(size=len(d))
        for form, reward in curves.items():
            found = fit(self.KL, np.append(0.0, reward + noise), form)
            assert found["alpha"] == pytest.approx(alpha, abs=2e-3)
            assert found["beta"] == pytest.approx(beta, abs=2e-3)
            assert found["r2"] > 0.99
            np.testing.assert_allclose(
                curve(self.KL[1:], found["alpha"], found["beta"], form), reward, atol=2e-3
            )

    @pytest.mark.parametrize("form", ["best-of-n", "rl"])
    def test_the_peak_is_where_a_search_finds_it(self, form):
        found = fit(self.KL, curve(self.KL, 1.1, 0.35, form), form)
        best = optimize.minimize_scalar(
            lambda kl: -float(curve([kl], 1.1, 0.35, form)[0]), bounds=(1e-6, 500), method="bounded"
        )
        assert found["peak_kl"] == pytest.approx(best.x, rel=1e-4)
        assert found["peak"] == pytest.approx(-best.fun, rel=1e-6)
        assert found["seen"] == (best.x <= 60)

    @pytest.mark.parametrize("form", ["best-of-n", "rl"])
    def test_what_only_rises_has_no_peak_and_a_peak_beyond_the_points_was_not_seen(self, form):
        rising = fit(self.KL, curve(self.KL, 1.0, -0.1, form), form)
        assert rising["peak_kl"] is None and rising["peak"] is None and not rising["seen"]
        far = fit(self.KL[:5], curve(self.KL[:5], 1.1, 0.35, form), form)
        top = 500 if form == "best-of-n" else math.exp(2 * (1.1 / 0.35 - 1))
        assert far["seen"] == (min(top, far["peak_kl"]) <= self.KL[4])

    def test_two_points_of_one_divergence_fit_nothing(self):
        assert fit([0.0, 4.0, 4.0], [0.0, 1.0, 1.1], "rl") is None


def rows_of(even, odd, kl=None):
    return [
        {
            "step": 10 * place,
            "kl": float(place if kl is None else kl[place]),
            "proxy": float(place),
            **{f"{name}_even": float(a) for name in ("truth", "log_odds")},
            **{f"{name}_odd": float(b) for name in ("truth", "log_odds")},
        }
        for place, (a, b) in enumerate(zip(even, odd, strict=True))
    ]  # fmt: skip


class TestTurns:
    def test_by_hand(self):
        # The even half peaks at place 1, the odd half at place 2; each is read on the other.
        rows = rows_of([0.2, 0.9, 0.6, 0.1], [0.3, 0.5, 0.8, 0.2])
        assert turn(rows, "truth") == pytest.approx(((0.5 - 0.2) + (0.6 - 0.1)) / 2)

    def test_noise_alone_is_no_turn(self):
        random = np.random.default_rng(0)
        flat = [rows_of(*random.normal(size=(2, 9))) for _ in range(2000)]
        turns = np.array([turn(rows, "truth") for rows in flat])
        assert turns.mean() < 3 * turns.std() / np.sqrt(len(turns))
        naive = [
            max(r["truth_even"] for r in rows) - rows[-1]["truth_even"] for rows in flat
        ]  # fmt: skip
        assert np.mean(naive) > 1

    def test_an_early_stop_keeps_the_best_and_waits(self):
        truth = [0.3, 0.5, 0.4, 0.45, 0.9, 0.1]
        rows = rows_of(truth, truth)
        soon, late = early_stop(rows, "truth", 2), early_stop(rows, "truth", 3)
        # Two measurements without a new best end it before the second rise.
        assert soon == {
            "kl": 1.0, "proxy": 1.0, "log_odds": 0.5, "truth": 0.5,
            "turn": pytest.approx(0.4), "step": 30.0,
        }  # fmt: skip
        assert (late["truth"], late["turn"], late["step"]) == (0.9, 0.0, 50.0)

    def test_one_half_chooses_and_the_other_is_read(self):
        found = early_stop(rows_of([0.1, 0.8, 0.2], [0.3, 0.4, 0.6]), "truth", 2)
        assert found["truth"] == pytest.approx((0.4 + 0.2) / 2)
        assert found["kl"] == pytest.approx(1.5)


class TestTruth:
    def test_both_are_asked_for(self, done):
        out, _ = done
        model = load_language_model(out / "seed-1000" / "sft" / "run")
        texts = [" a wonderful, moving and funny film", " terrible, dull and awful mess"]
        items = [
            Completion(tuple(model.tokenizer("It was")["input_ids"]), tuple(ids))
            for ids in model.tokenizer(texts, add_special_tokens=False)["input_ids"]
        ]
        low = judge(model.tokenizer, items, model, -100.0)
        assert low.truth.tolist() == [1.0, 0.0] and low.fluent.all()
        high = judge(model.tokenizer, items, model, 0.0)
        assert high.truth.tolist() == [0.0, 0.0] and not high.fluent.any()
        between = float(low.fluency.mean())
        one = judge(model.tokenizer, items, model, between)
        assert one.truth.tolist() == [float(low.fluency[0] >= between), 0.0]
        whole = [model.tokenizer.decode([*i.prompt_ids, *i.completion_ids]) for i in items]
        cleaned = [text.replace(model.tokenizer.bos_token or "\0", "") for text in whole]
        np.testing.assert_allclose(low.log_odds, gold_scorer().log_odds(cleaned))

    def test_nine_tenths_of_people_are_fluent_by_plain_passes(self, done):
        out, found = done
        model = load_language_model(out / "seed-1000" / "sft" / "run")
        bar = fluency_of_people(model.tokenizer, model, count=8, new_tokens=6, seed=1000)
        reviews = [r.text for r in load_reviews().part("held_out") if r.source == "imdb"]
        order = np.random.default_rng(1000).permutation(len(reviews))
        likely = []
        for index in order:
            ids = model.tokenizer(reviews[index][: 64 * 14])["input_ids"]
            lead = len(ids) - len(
                model.tokenizer(reviews[index][: 64 * 14], add_special_tokens=False)["input_ids"]
            )
            if len(ids) - lead <= 14 or len(likely) == 8:
                continue
            start = lead + 2 + len(likely) % 7
            texts = [
                model.tokenizer.decode(part, skip_special_tokens=True)
                for part in (ids[:start], ids[start : start + 6])
            ]
            before = model.tokenizer(texts[0])["input_ids"]
            after = model.tokenizer(texts[1], add_special_tokens=False)["input_ids"]
            with torch.no_grad():
                logits = model.model(input_ids=torch.tensor([before + after])).logits[0]
            log_p = logits.double().log_softmax(-1)[len(before) - 1 : -1]
            likely.append(float(np.mean([float(log_p[i, t]) for i, t in enumerate(after)])))
        assert bar == pytest.approx(np.quantile(likely, 0.1), abs=1e-4)
        assert found["fluent"]["n"] == 2


class TestLabels:
    def test_about_a_quarter_is_flipped_and_more_begin_with_fewer(self):
        pairs = [Pair((1,), (place,), (place + 1,)) for place in range(2000)]
        flipped = study.flip(pairs, 0.25, 7)
        wrong = [p.chosen_ids > p.rejected_ids for p in flipped]
        assert np.mean(wrong) == pytest.approx(0.25, abs=0.03)
        assert study.flip(pairs[:100], 0.25, 7) == flipped[:100]
        assert study.flip(pairs, 0.0, 7) == pairs
        assert study.flip(pairs, 0.25, 8) != flipped

    def test_accuracy_is_of_comparisons_nobody_learned_from(self, done):
        out, found = done
        place = out / "seed-1000"
        rankings = read_rankings(place / "rankings" / "rankings.jsonl")
        held_out = pairs_in(rankings[-math.ceil(0.1 * len(rankings)) :])
        model = load_reward_model(place / "reward-12" / "run")
        right = [
            float(np.diff(model(pair.as_completions()))[0] < 0) for pair in held_out
        ]  # fmt: skip
        told = json.loads((place / "reward-12" / "result.json").read_text())
        assert told == {"accuracy": pytest.approx(np.mean(right)), "held_out": len(held_out)}
        assert found["accuracy"]["reward-12"]["n"] == 2


class TestBestOfN:
    def test_the_estimate_is_that_of_every_choice(self, done):
        """Against enumeration: every choice of 2 of 6 samples, its best by the proxy."""
        random = np.random.default_rng(0)
        proxy, gold = random.normal(size=(2, 6))
        choices = itertools.combinations(range(6), 2)
        best = [gold[max(two, key=lambda i: proxy[i])] for two in choices]
        assert expected_best_of_n(proxy, 2, gold) == pytest.approx(np.mean(best))

    def test_every_reward_model_and_ensemble_chooses(self, done):
        _, found = done
        names = {"6", "12", "ensemble-mean", "ensemble-lowest", "ensemble-mean-variance"}
        assert set(found["best_of_n"]) == names
        starts = set()
        for one in found["best_of_n"].values():
            points = one["points"]
            assert [p["n"] for p in points] == list(study.BEST_OF)
            proxies = [p["proxy"] for p in points]
            assert proxies == sorted(proxies)
            for point in points:
                assert point["kl"] == pytest.approx(
                    math.log(point["n"]) - (point["n"] - 1) / point["n"]
                )
            starts.add(round(points[0]["log_odds"], 9))
        # Best of one is the reference, whoever chooses.
        assert len(starts) == 1


class TestStudy:
    def test_every_arm_is_there_and_begins_at_the_reference(self, config, done):
        out, found = done
        assert [*found["ppo"]] == [*study.arms(config), "early-stop"]
        for name in study.arms(config):
            for seed, own in found["ppo"][name]["seeds"].items():
                first, last = own["points"][0], own["points"][-1]
                assert first["kl"] == 0.0 and first["step"] == 0
                # What spends so small a budget is taken back, to the reference itself, and so short
                # a training may meet no word of the lexicon.
                assert last["kl"] > 0 or name in ("budget", "lexicon")
                penalized = found["ppo"]["kl-penalty"]["seeds"][seed]["points"]
                assert first["truth"] == penalized[0]["truth"]
        assert json.loads((out / "overoptimisation.json").read_text()) == json.loads(
            json.dumps(found)
        )
        assert (out / "overoptimisation.png").stat().st_size > 20_000
        assert found["protocol"]["kind"] == "development"

    def test_halves_are_every_other_prompt(self, done):
        _, found = done
        for own in found["ppo"]["ppo-6"]["seeds"].values():
            for row in own["points"]:
                for name in ("truth", "log_odds"):
                    halves = (row[f"{name}_even"] + row[f"{name}_odd"]) / 2
                    assert row[name] == pytest.approx(halves, abs=1e-9)

    def test_proxies_by_hand_score_what_they_say(self, done):
        out, found = done
        for seed, own in found["ppo"]["words"]["seeds"].items():
            # Of samples that the run kept, each scored by the number of its words.
            kept = (out / f"seed-{seed}" / "words" / "run" / "samples.jsonl").read_text()
            for row in map(json.loads, kept.splitlines()):
                text = row["prompt"] + row["completion"]
                assert row["score"] == len(re.findall(r"[A-Za-z]+(?:['’][A-Za-z]+)*", text))
            assert all(0 < row["distinct"] <= 1 for row in own["points"])
        plain, positive = found["ppo"]["ppo-6"], found["ppo"]["lexicon"]
        for seed, own in positive["seeds"].items():
            start = own["points"][0], plain["seeds"][seed]["points"][0]
            assert start[0]["distinct"] == start[1]["distinct"]
            assert start[0]["proxy"] != start[1]["proxy"]

    def test_turns_have_an_interval_over_seeds(self, done):
        _, found = done
        for one in found["ppo"].values():
            assert one["turn"]["truth"]["n"] == 2
            own = [
                s["turn"] if "points" not in s else s["turn"]["truth"]
                for s in one["seeds"].values()
            ]
            assert one["turn"]["truth"]["mean"] == pytest.approx(np.mean(own))
        plain = found["ppo"]["ppo-6"]["seeds"]["1001"]
        assert plain["turn"]["truth"] == turn(plain["points"], "truth")

    def test_each_remedy_is_an_option_of_the_ordinary_method(self, config, done):
        out, found = done
        place = out / "seed-1000"
        set_to = {
            name: json.loads((place / name / "run" / "run.json").read_text())["config"]
            for name in study.arms(config)
        }
        assert set_to["kl-penalty"]["beta"] == config.kl_coefficient
        assert set_to["budget"]["kl_budget"] == config.budget
        assert set_to["clip"]["clip_score"] == config.clip
        assert all(own["beta"] == 0 for name, own in set_to.items() if name != "kl-penalty")
        budget = found["ppo"]["budget"]["seeds"]["1000"]["points"]
        assert budget[-1]["step"] <= config.episodes
        spreads = {
            name: "reward/ensemble_std" in (place / name / "run" / "metrics.jsonl").read_text()
            for name in set_to
        }
        assert {name for name, there in spreads.items() if there} == {
            "ensemble-mean", "ensemble-lowest", "ensemble-mean-variance",
        }  # fmt: skip

    def test_ensembles_say_less_than_their_mean_of_the_same_completions(self, done):
        _, found = done
        for seed in ("1000", "1001"):
            first = {
                kind: found["ppo"][f"ensemble-{kind}"]["seeds"][seed]["points"][0]
                for kind in ("mean", "lowest", "mean-variance")
            }
            assert first["lowest"]["proxy"] < first["mean"]["proxy"]
            assert first["mean-variance"]["proxy"] < first["mean"]["proxy"]
            # Of two members the lowest is the mean less half their distance.
            assert first["lowest"]["proxy"] != first["mean-variance"]["proxy"]
            assert len({row["log_odds"] for row in first.values()}) == 1

    def test_members_differ_and_learn_from_the_same(self, done):
        out, _ = done
        place = out / "seed-1000"
        one, other = (load_reward_model(place / n / "run") for n in ("reward-6", "reward-6-1"))
        items = [Completion((1, 5), (7, place)) for place in range(3, 9)]
        assert not np.allclose(one(items), other(items))
        seals = [
            json.loads((place / n / "run" / "run.json").read_text())["spec"]["origins"]
            for n in ("reward-6", "reward-6-1")
        ]
        assert seals[0] == seals[1]

    def test_a_training_stopped_half_way_ends_the_same(self, config, done, tmp_path, monkeypatch):
        out, found = done
        for name in ("sft", "rankings", "reward-6", "reward-6-1"):
            shutil.copytree(out / "seed-1000" / name, tmp_path / name)
        whole = found["ppo"]["ensemble-lowest"]["seeds"]["1000"]["points"]
        settings = {**config.of_seed(1000).dump(), "arm": "ensemble-lowest"}
        real, seen = study.judge, []

        def interrupted(*arguments):
            if seen:
                raise KeyboardInterrupt
            seen.append(1)
            return real(*arguments)

        monkeypatch.setattr(study, "judge", interrupted)
        with pytest.raises(KeyboardInterrupt):
            study.reinforce(settings, tmp_path / "ensemble-lowest")
        monkeypatch.setattr(study, "judge", real)
        again = study.reinforce(settings, tmp_path / "ensemble-lowest")["points"]
        assert again == whole


class TestMistakes:
    @pytest.mark.parametrize(
        ("settings", "message"),
        [
            (
                {"remedy_comparisons": 200},
                "remedy_comparisons is 200, which is not one of comparisons",
            ),
            ({"prompts": 100}, "comparisons has 6000, and 100 prompts give at most 270"),
            (
                {"comparisons": (), "remedy_comparisons": 2},
                r"comparisons is \(\); expected numbers",
            ),
        ],
    )
    def test_what_cannot_be_is_refused(self, settings, message):
        with pytest.raises(UserError, match=message):
            study.OveroptimisationConfig(**settings)

    def test_a_reader_that_is_not_there_is_told_before_anything_is_written(self, tmp_path):
        config = study.OveroptimisationConfig(fluency="nowhere/at/all")
        with pytest.raises(UserError, match="there is no folder"):
            study.run(config, tmp_path / "out")
        assert not (tmp_path / "out").exists()

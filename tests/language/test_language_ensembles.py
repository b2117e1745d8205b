"""Ensembles of reward models as rewards: how they become one, their spread, budget and clip."""

import itertools
import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from rlhf_toys import EOS, LIKED, count_liked, exact, learner, moved, plain_log_probs

import tether
from tether.errors import UserError
from tether.language.data.tokens import Completion
from tether.language.methods.reward import RewardConfig
from tether.language.methods.rlhf.config import RLHFConfig
from tether.language.methods.rlhf.given_rewards import GivenRewards
from tether.language.methods.rlhf.rewards import Ensemble, digests, open_scorer
from tether.language.models.reward_function import FunctionScorer, RewardFunction
from tether.language.models.reward_model import RewardModel
from tether.learning.alarms import Outside

ITEMS = [Completion((2,), tokens) for tokens in ((LIKED, EOS), (EOS,), (4, LIKED, LIKED), (5, 6))]


def reward_model(seed: int, *, members: int = 1) -> RewardModel:
    made = RewardModel(exact(seed), members=members, seed=seed)
    made.normalize(ITEMS)
    return made


def five() -> list[RewardModel]:
    return [reward_model(seed) for seed in range(5)]


def opened(rewards, **settings):
    names = tuple(f"r{place}" for place in range(len(rewards)))
    config = RLHFConfig(reward=names, **settings)
    return open_scorer(config, exact(), GivenRewards(config.reward, tuple(rewards)))


@pytest.mark.parametrize(
    ("combine", "expected"),
    [
        (None, lambda s: s.mean(0)),
        ("mean", lambda s: s.mean(0)),
        ("lowest", lambda s: s.min(0)),
        ("mean-variance", lambda s: s.mean(0) - 0.7 * s.var(0)),
    ],
)
def test_several_reward_models_become_one(combine, expected, caplog):
    models = five()
    each = np.stack([model(ITEMS) for model in models]).astype(np.float64)
    given = {"reward_variance_weight": 0.7} if combine == "mean-variance" else {}
    ensemble = opened(models, reward_combine=combine, **given)
    found = ensemble.read(ITEMS)
    np.testing.assert_allclose(found.members, each)
    np.testing.assert_allclose(found.total, expected(each), atol=1e-12)
    np.testing.assert_allclose(found.spread, each.std(0), atol=1e-12)
    assert not caplog.messages


@pytest.mark.parametrize("combine", ["mean", "lowest", "mean-variance"])
def test_a_single_run_of_several_members_is_an_ensemble_too(combine):
    model = reward_model(0, members=4)
    each = model.member_scores(ITEMS).T
    expected = {"mean": each.mean(0), "lowest": each.min(0)}
    expected["mean-variance"] = each.mean(0) - 0.1 * each.var(0)
    found = opened([model], reward_combine=combine).read(ITEMS)
    np.testing.assert_allclose(found.total, expected[combine], rtol=1e-6)
    np.testing.assert_allclose(found.spread, each.std(0))
    # The model that was given stays as it was, and decides where nothing else is asked for.
    assert model.combine == "mean"
    own = model.combining("lowest", 0.0)
    np.testing.assert_allclose(opened([own])(ITEMS), each.min(0), rtol=1e-6)


def test_another_price_of_variance_is_another_reward():
    model = reward_model(0, members=2)
    seals = [
        digests(Ensemble([model.combining("mean-variance", w)]), ["a"])["a"] for w in (0.1, 0.2)
    ]
    assert seals[0] != seals[1]


def test_scores_that_do_not_compare_are_warned_of(caplog):
    model = reward_model(0)
    raw = RewardModel(exact(1), seed=1)
    opened([model, raw, count_and_shout()], reward_combine="lowest")
    (line,) = caplog.messages
    assert "reward_combine is lowest" in line and "r1 and r2 have a scale" in line
    caplog.clear()
    opened([model, raw], reward_combine="mean")
    assert not caplog.messages


def count_and_shout():
    return RewardFunction(lambda completions: [0.0 for _ in completions])


def test_one_score_alone_is_not_combined():
    with pytest.raises(UserError, match=r"reward_combine is lowest, and the reward r0 is a single"):
        opened([reward_model(0)], reward_combine="lowest")
    with pytest.raises(UserError, match=r"reward_variance_weight is 0\.7, which"):
        RLHFConfig(reward=("a", "b"), reward_variance_weight=0.7)
    with pytest.raises(UserError, match="combine is 'worst'; expected one of mean, lowest, mean-"):
        Ensemble([count_liked], "worst")


def test_the_spread_is_of_those_that_have_a_score_and_of_an_ensemble_alone():
    tokenizer = SimpleNamespace(decode=lambda ids, **_: "")

    def of(*values):
        return FunctionScorer(RewardFunction(lambda completions: list(values)), tokenizer)

    items = [Completion((2,), (3,), row=0)] * 3
    three = [of(1.0, None, 4.0), of(3.0, 2.0, -2.0), of(5.0, None, None)]
    found = Ensemble(three, "mean-variance", variance_weight=0.5).read(items)
    expected = [np.std([1, 3, 5]), math.nan, 3.0]
    np.testing.assert_allclose(found.spread, expected)
    np.testing.assert_allclose(found.total, [3 - 0.5 * np.var([1, 3, 5]), 2.0, 1.0 - 0.5 * 9.0])
    assert np.isnan(Ensemble(three, weights=(1.0, 1.0, 1.0)).read(items).spread).all()
    assert np.isnan(Ensemble([of(1.0, 2.0, 3.0)]).read(items).spread).all()


def test_the_spread_is_measured_and_an_alarm_hears_it():
    models = five()
    made = learner(exact(), scorer=Ensemble(models, "lowest"))
    metrics = made.iterate()
    each = np.stack([model([s.completion for s in made.samples]) for model in models])
    assert metrics["reward/ensemble_std"] == pytest.approx(each.std(0).mean())
    assert metrics["reward/mean"] == pytest.approx(each.min(0).mean())
    height = metrics["reward/ensemble_std"]
    assert Outside("reward/ensemble_std", high=height * 0.9).look(metrics)
    assert Outside("reward/ensemble_std", high=height * 1.1).look(metrics) is None
    assert "reward/ensemble_std" not in learner(exact()).iterate()


def test_a_resumed_training_on_an_ensemble_has_the_same_numbers():
    def made():
        return learner(
            exact(), scorer=Ensemble(five(), "mean-variance", variance_weight=0.3), kl_budget=50.0
        )

    whole, first, second = made(), made(), made()
    expected = [whole.iterate() for _ in range(4)]
    found = [first.iterate() for _ in range(2)]
    second.restore(first.state())
    found += [second.iterate() for _ in range(2)]
    for one, other in zip(expected, found, strict=True):
        timeless = [n for n in one if not n.startswith("time/")]
        assert [one[n] for n in timeless] == [other[n] for n in timeless]
    for name, parameter in whole.language_model.model.named_parameters():
        assert torch.equal(parameter, dict(second.language_model.model.named_parameters())[name])


@torch.no_grad()
def sequence_kl(made) -> float:
    """KL(policy || reference) of everything that the collector would sample, by plain passes."""
    reference = exact()
    return float(
        np.mean(
            [
                float((plain_log_probs(made.language_model, s.completion, 1.0)
                       - plain_log_probs(reference, s.completion, 1.0)).sum())
                for s in made.samples
            ]
        )
    )  # fmt: skip


def test_the_update_that_spends_the_budget_is_taken_back():
    free = learner(exact(), beta=0.0, learning_rate=5e-3, total_steps=400)
    kls, parameters = [], []
    for _ in range(12):
        parameters.append(state_of(free))
        kls.append(free.iterate()["kl/sequence"])
    spent = next(place for place, kl in enumerate(kls) if kl > 0.5)
    assert spent > 1 and all(kl > 0.5 for kl in kls[spent:])
    bound = learner(exact(), beta=0.0, learning_rate=5e-3, total_steps=400, kl_budget=0.5)
    for place in itertools.count():
        if bound.finished:
            break
        metrics = bound.iterate()
        if place == spent - 1:
            # Stopped and resumed between the update and the look at what it did.
            again = learner(exact(), beta=0.0, learning_rate=5e-3, total_steps=400, kl_budget=0.5)
            again.restore(bound.state())
            bound = again
    assert place == spent + 1 and metrics["kl/sequence"] == kls[spent]
    assert "policy/approx_kl" not in metrics
    for name, value in state_of(bound).items():
        assert torch.equal(value, parameters[spent - 1][name])
    over = learner(exact(), kl_budget=0.5)
    over.restore(bound.state())
    assert over.finished


def state_of(made) -> dict[str, torch.Tensor]:
    return {n: p.detach().clone() for n, p in made.language_model.model.named_parameters()}


def test_the_divergence_that_the_budget_bounds_is_that_of_the_reference():
    made = moved(learner(exact(), beta=0.0, kl_budget=1e-6))
    metrics = made.iterate()
    assert metrics["kl/sequence"] == pytest.approx(sequence_kl(moved(made, by=0.0)), abs=1e-6)


def test_scores_are_clipped_after_they_are_normalized():
    made = learner(exact(), clip_score=0.5, normalize_score=True)
    episodes = made.collector.collect()
    plain = (episodes.scores - episodes.scores.mean()) / episodes.scores.std()
    found = made.score(episodes).numpy()
    np.testing.assert_allclose(found, np.clip(plain, -0.5, 0.5), atol=1e-12)
    assert set(np.abs(found)) >= {0.5} and np.abs(plain).max() > 0.5


def test_the_command_combines_and_watches(tether_, tmp_path, caplog):
    done = tether_(
        "rlhf", "--model", "tiny", "--reward", "sentiment", "lexicon", "--reward-combine",
        "mean-variance", "--reward-variance-weight", "0.2", "--clip-score", "2", "--kl-budget",
        "30", "--alarms", "reward/ensemble_std>0.01", "--total-steps", "8", "--batch-size", "8",
        "--minibatch-size", "8", "--max-new-tokens", "4", "--limit", "8", "--quiet", "--out", "run",
    )  # fmt: skip
    assert done.code == 0, done.err
    assert "alarm reward/ensemble_std at step 8" in done.err
    assert "sentiment and lexicon have a scale of their own" in caplog.messages[0]
    line = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()[-1]
    assert '"alarm/reward/ensemble_std": 1' in line


def test_a_run_keeps_how_its_members_are_combined(tmp_path):
    pairs = [
        {"prompt": f"Film {i} was", "chosen": " fine.", "rejected": " dull."} for i in range(8)
    ]
    settings = {"combine": "mean-variance", "variance_weight": 0.4, "members": 3}
    trained = tether.train(
        "reward", model="tiny", data=pairs, total_steps=4, out=tmp_path / "run", **settings
    )
    model = tether.load(trained.run)
    each = model.member_scores(ITEMS)
    np.testing.assert_allclose(model(ITEMS), each.mean(1) - 0.4 * each.var(1), rtol=1e-5)
    with pytest.raises(UserError, match=r"variance_weight is 0\.4, which"):
        RewardConfig(members=3, variance_weight=0.4)

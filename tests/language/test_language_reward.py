"""Reward models: what they read, what they minimize, what they learn, what they remember."""

from itertools import combinations

import numpy as np
import pytest
import torch
from preference_toys import (
    LIKED,
    answer,
    assert_close,
    equal_states,
    exact,
    gradients,
    ids,
    model,
    pairs,
    rankings,
    without_time,
)
from random_models import EOS, completions

from tether import objectives
from tether.errors import RunError, UserError
from tether.language.data.tokens import Completion, Pair, Ranking, collate, collate_shared
from tether.language.learners.means import Means
from tether.language.learners.splitting import split
from tether.language.methods.reward import (
    Comparisons,
    RewardConfig,
    RewardLearner,
    RewardModel,
    drawn,
    expected_calibration_error,
)
from tether.learning import Run

QUIET = {"progress": False, "sinks": (), "checkpoint_every_seconds": None}
FAST = {"learning_rate": 3e-3, "schedule": "constant", "warmup": 0.1}


def learner(language_model, data, *, total=96, seed=0, held_out=(), **settings) -> RewardLearner:
    config = RewardConfig(**{"batch_size": 16, **settings})
    return RewardLearner(
        config, language_model, data, seed=seed, total_steps=total, held_out=held_out
    )


def in_double(made: RewardLearner) -> RewardLearner:
    """Heads are float32 by contract; equalities are sharper in float64."""
    made.reward_model.heads.double()
    return made


@pytest.mark.parametrize("pad", [EOS, 0, 13])
@pytest.mark.parametrize("side", ["left", "right"])
def test_the_score_is_read_at_the_last_token_whatever_the_padding(pad, side):
    reward_model = RewardModel(exact())
    reward_model.heads.double()
    items = [*completions(6), Completion((3, 4), (5,))]
    found = reward_model.raw(collate(items, pad_id=pad, side=side))
    head, hf = reward_model.heads[0], reward_model.language_model.causal_lm
    for item, score in zip(items, found, strict=True):
        alone = torch.tensor([[*item.prompt_ids, *item.completion_ids]])
        last = hf(alone, output_hidden_states=True).hidden_states[-1][0, -1]
        torch.testing.assert_close(score, last @ head.weight + head.bias)


def test_completions_that_share_a_prompt_score_as_they_do_alone():
    reward_model = RewardModel(exact())
    reward_model.heads.double()
    groups = [record.as_completions() for record in [*rankings(3), *pairs(2)]]
    alone = collate([item for group in groups for item in group], pad_id=0)
    shared = reward_model.raw(collate_shared(groups, pad_id=0))
    torch.testing.assert_close(shared, reward_model.raw(alone))


def test_a_batch_of_pairs_and_rankings_is_the_mean_over_all_their_pairs():
    records = [*pairs(3, labels=(1.0, 0.8, 0.5)), *rankings(2, k=4), *rankings(1, k=3)]
    draw = np.random.default_rng(0)
    per_record = [draw.normal(size=len(record.as_completions())) for record in records]
    expected = 0.0
    for record, scores in zip(records, per_record, strict=True):
        p = record.label if isinstance(record, Pair) else 1.0
        terms = [
            p * np.log1p(np.exp(b - a)) + (1 - p) * np.log1p(np.exp(a - b))
            for a, b in combinations(scores, 2)
        ]
        expected += np.mean(terms)
    comparisons = Comparisons(records, torch.from_numpy(np.concatenate(per_record)))
    assert float(comparisons.loss()) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize(("shared", "rows"), [(True, 3), (False, 12)])
def test_a_completion_is_read_once_however_many_pairs_it_is_in(shared, rows):
    """Three rankings of four are 18 pairs, and 12 completions."""
    made = learner(exact(), rankings(3, k=4), shared_prompt=shared, micro_batch_size=99)
    read = []
    made.language_model.causal_lm.get_input_embeddings().register_forward_hook(
        lambda _, inputs, __: read.append(inputs[0])
    )
    gradients(made, range(3))
    assert [len(ids) for ids in read] == [rows]
    prompts = sum(len(record.prompt_ids) for record in made.data) * (1 if shared else 4)
    answers = sum(len(c) for record in made.data for c in record.completions)
    width = read[0].shape[1]
    assert prompts + answers <= rows * width < 2 * (prompts + answers)


def test_the_learner_minimizes_the_objectives_equation():
    """One completion at a time, without batching, sharing, or micro-batches."""
    data = [*pairs(5, labels=(1.0, 0.3)), *rankings(4)]
    made = in_double(learner(exact(), data, micro_batch_size=2))
    found = gradients(made, range(len(data)))
    for module in made.modules.values():
        module.zero_grad(set_to_none=True)
    for record in data:
        scores = torch.cat(
            [made.reward_model.raw(collate([i], pad_id=0)) for i in record.as_completions()]
        )
        if isinstance(record, Pair):
            loss = objectives.bradley_terry(scores[0], scores[1], record.label)
        else:
            loss = objectives.k_wise(scores)
        (loss / len(data)).backward()
    expected = {
        f"{name}.{inner}": p.grad
        for name, module in made.modules.items()
        for inner, p in module.named_parameters()
        if p.grad is not None
    }
    assert_close(found, expected, 1e-7)


@pytest.mark.parametrize("settings", [{"micro_batch_size": 3}, {"shared_prompt": False}])
def test_splitting_and_sharing_leave_the_gradient_as_it_is(settings):
    data = [*pairs(7, labels=(1.0, 0.8)), *rankings(4)]
    expected = gradients(in_double(learner(exact(), data, micro_batch_size=99)), range(11))
    found = gradients(in_double(learner(exact(), data, **settings)), range(11))
    assert_close(found, expected, 1e-7)


def test_adding_a_constant_to_every_reward_changes_nothing():
    data = [*pairs(4), *rankings(3)]
    made = in_double(learner(exact(), data))
    before = gradients(made, range(7))
    with torch.no_grad():
        made.reward_model.heads[0].bias += 5.0
    after = gradients(made, range(7))
    assert_close(after, before, 1e-7)
    assert abs(float(after["heads.0.bias"])) < 1e-9


def test_a_tie_pulls_two_scores_together_and_counts_in_no_accuracy():
    scores = torch.tensor([2.0, -1.0, 0.5, 0.1], dtype=torch.float64, requires_grad=True)
    comparisons = Comparisons(pairs(2, labels=(0.5,)), scores)
    comparisons.loss().backward()
    assert scores.grad[0] > 0 > scores.grad[1]
    means = Means()
    comparisons.measure(means)
    assert means.read() == {}


def test_accuracy_and_margin_look_at_the_better_completion():
    records = [
        *pairs(4, labels=(1.0, 0.2, 0.5, 0.9)),
        Ranking((5,), ((2, EOS), (3, EOS), (4, EOS))),
    ]
    scores = [1.0, 0.0, 1.0, 3.0, 9.0, 0.0, 2.0, 2.0, 5.0, 1.0, 4.0]
    means = Means()
    Comparisons(records, torch.tensor(scores)).measure(means)
    metrics = means.read()
    # Right, right, (tie), equal: a guess, and of the ranking two pairs of three.
    assert metrics["reward/accuracy"] == pytest.approx((1 + 1 + 0.5 + 2 / 3) / 4)
    assert metrics["reward/margin"] == pytest.approx((1 + 2 + 0 + (4 + 1 - 3) / 3) / 4)


@pytest.mark.parametrize("lora", [False, True])
def test_it_learns_what_the_teacher_likes(lora):
    made = learner(
        model(lora), pairs(400), total=800, held_out=pairs(100, seed=5), evaluate_every=1000,
        **{**FAST, "learning_rate": 1e-2 if lora else 3e-3},
    )  # fmt: skip
    before = made.evaluate(made.held_out)
    while made.steps < made.total_steps:
        metrics = made.iterate()
    assert before["reward/accuracy"] < 0.8
    assert metrics["held_out/reward/accuracy"] > 0.95
    assert metrics["held_out/loss"] < before["loss"]
    draw = np.random.default_rng(9)
    prompt = [ids(draw, 4)] * 20
    liked = made.reward_model.score(prompt, [answer(draw, 1) for _ in prompt])
    plain = made.reward_model.score(prompt, [answer(draw, 0) for _ in prompt])
    assert liked.shape == (20,) and liked.dtype == np.float32
    assert liked.mean() > plain.mean() + 1.0
    assert LIKED not in answer(draw, 0)


def test_it_learns_from_rankings():
    made = learner(model(), rankings(200), total=600, held_out=rankings(60, seed=5), **FAST)
    while made.steps < made.total_steps:
        metrics = made.iterate()
    assert metrics["held_out/reward/accuracy"] > 0.9


@pytest.mark.parametrize("settings", [{}, {"lora": True}, {"lora": True, "members": 2}])
def test_a_killed_run_ends_with_the_same_bits(settings, tmp_path):
    settings = dict(settings)
    lora = settings.pop("lora", False)

    def built():
        return learner(
            model(lora), pairs(40), held_out=pairs(6, seed=3), evaluate_every=2, **settings
        )

    straight = built()
    lines = [without_time(straight.iterate()) for _ in range(6)]
    run = Run.create(tmp_path / "run", method="reward", config={}, spec={})
    run.train(built(), 40, **QUIET)
    resumed = built()
    reopened = Run.open(tmp_path / "run")
    reopened.resume(resumed)
    assert resumed.steps == 40
    assert [without_time(resumed.iterate()) for _ in range(3)] == lines[3:]
    assert equal_states(resumed.state(), straight.state())


@pytest.mark.parametrize("members", [1, 3])
@pytest.mark.parametrize("lora", [False, True])
def test_what_is_loaded_scores_bit_for_bit_like_what_was_saved(lora, members, tmp_path):
    made = learner(model(lora), pairs(32), total=32, members=members, **FAST)
    run = Run.create(tmp_path / "run", method="reward", config={}, spec={})
    run.train(made, 32, **QUIET)
    items = completions(9)
    loaded = RewardModel(model(lora), members=members, seed=123).restore(Run.open(run.path).load())
    np.testing.assert_array_equal(loaded(items), made.reward_model(items))
    fresh = RewardModel(model(lora), members=members, seed=123)
    assert not np.allclose(fresh(items), made.reward_model(items))
    again = RewardModel(model(lora), members=members).restore(made.reward_model.state())
    np.testing.assert_array_equal(again(items), made.reward_model(items))


def test_a_checkpoint_of_another_shape_is_refused():
    with pytest.raises(RunError, match="LoRA"):
        RewardModel(model()).restore(RewardModel(model(lora=True)).state())
    with pytest.raises(RunError, match="only the model has the parameter"):
        RewardModel(model(), members=2).restore(RewardModel(model()).state())


def test_at_the_end_scores_have_mean_0_and_deviation_1_on_the_samples():
    made = learner(model(), pairs(64), total=32, members=2, normalize_samples=40, **FAST)
    made.iterate()
    np.testing.assert_array_equal(made.reward_model.gain, 1.0)
    made.iterate()
    items = drawn(made.data, 40, seed=0)
    scores = made.reward_model.member_scores(items)
    np.testing.assert_allclose(scores.mean(axis=0), 0.0, atol=1e-6)
    np.testing.assert_allclose(scores.std(axis=0), 1.0, atol=1e-6)
    margin = np.diff(made.reward_model.member_scores(items[:2], raw=True), axis=0)
    np.testing.assert_allclose(
        np.diff(scores[:2], axis=0), margin * made.reward_model.gain, rtol=1e-6
    )


@pytest.mark.parametrize("count", [256, 512, 500])
def test_scores_are_normalized_on_both_sides_of_the_comparisons(count):
    items = drawn(pairs(count), 256, seed=0)
    assert len(items) == len(set(map(id, items))) == 256
    better = sum(LIKED in item.completion_ids for item in items)
    # A fair draw is within five deviations of a half.
    assert abs(better - 128) < 40
    assert len(drawn(pairs(4), 256, seed=0)) == 8


def test_a_trunk_that_members_share_is_read_once():
    made = RewardModel(model(), members=3)
    read = []
    made.language_model.causal_lm.get_input_embeddings().register_forward_hook(
        lambda *_: read.append(1)
    )
    items = completions(5)
    scores = made.member_scores(items)
    assert len(read) == 1
    batch = collate(items, pad_id=0)
    for member in range(3):
        expected = made.raw(batch, member).detach().numpy()
        np.testing.assert_allclose(scores[:, member], expected, rtol=1e-5, atol=1e-6)


def test_a_trunk_that_members_share_learns_from_their_mean():
    """Else its gradient would be clipped sooner than that of one."""
    several = in_double(learner(exact(), pairs(8), members=3))
    for module in several.modules.values():
        module.zero_grad(set_to_none=True)
    for member in range(3):
        several.accumulate(member, range(8), Means())
    head = several.reward_model.heads[0]
    found = {n: p.grad for n, p in several.language_model.model.named_parameters()}
    total = dict.fromkeys(found, 0.0)
    for member in range(3):
        alone = in_double(learner(exact(), pairs(8)))
        alone.reward_model.heads[0].load_state_dict(several.reward_model.heads[member].state_dict())
        for name, gradient in gradients(alone, range(8)).items():
            if name.startswith("model."):
                total[name.removeprefix("model.")] = (
                    total[name.removeprefix("model.")] + gradient / 3
                )
    assert head.weight.grad is not None
    assert_close(found, total, 1e-7)


def test_prompts_are_shared_where_that_saves_time():
    made = learner(model(max_position_embeddings=512), pairs(4))

    def rows(prompt, answers):
        items = [Completion((5,) * prompt, (6,) * answer) for answer in answers]
        return len(made.layout([items]).input_ids)

    assert rows(200, (50, 50)) == 1
    assert rows(1, (200, 200)) == 2
    assert rows(40, (10, 10, 10, 10)) == 1
    assert rows(200, (50,)) == 1


@pytest.mark.parametrize("lora", [False, True])
def test_members_are_independent(lora):
    made = learner(model(lora), pairs(64), members=3, bootstrap=True)
    assert len({tuple(order.next()) for order in made.orders}) == 3
    assert len({tuple(sample) for sample in made._samples}) == 3
    scores = made.reward_model.member_scores(completions(5))
    assert np.all(np.std(scores, axis=1) > 1e-3)
    touched = set(gradients(made, range(16), member=1))
    own = {name for name in touched if name.startswith("heads.1.") or ".member1." in name}
    assert any(name.startswith("heads.1.") for name in touched)
    assert touched == own or not lora
    assert not {name for name in touched if name.startswith(("heads.0.", "heads.2."))}
    assert len(made.optimizers) == (3 if lora else 1)


def test_the_first_member_of_an_ensemble_learns_as_it_does_alone():
    """Choosing one adapter must neither freeze nor move another."""
    alone, several = (learner(model(True), pairs(64), members=n, **FAST) for n in (1, 3))
    for _ in range(4):
        alone.iterate()
        several.iterate()
    found = several.reward_model.member_scores(completions(5), raw=True)
    expected = alone.reward_model.member_scores(completions(5), raw=True)
    np.testing.assert_array_equal(found[:, :1], expected)
    named = several.modules["model"].named_parameters()
    assert all(p.requires_grad == ("lora" in name) for name, p in named)


def test_members_combine_to_their_mean_or_to_the_lowest():
    reward_model = RewardModel(model(), members=3)
    items = completions(6)
    each = reward_model.member_scores(items)
    np.testing.assert_allclose(reward_model(items), each.mean(axis=1), rtol=1e-6)
    reward_model.combine = "lowest"
    np.testing.assert_allclose(reward_model(items), each.min(axis=1), rtol=1e-6)


def test_noise_bounds_what_a_comparison_can_claim():
    plain = gradients(in_double(learner(exact(), pairs(8))), range(8))
    noisy = gradients(in_double(learner(exact(), pairs(8), label_noise=0.2)), range(8))
    assert noisy["heads.0.weight"].norm() < plain["heads.0.weight"].norm()
    with pytest.raises(UserError, match="rankings"):
        learner(model(), rankings(4), label_noise=0.1)


def test_the_calibration_error_is_the_gap_between_confidence_and_correctness():
    p = np.array([0.9, 0.9, 0.9, 0.9, 0.25, 0.25])
    label = np.array([1.0, 1.0, 1.0, 0.0, 0.0, 1.0])
    # At confidence 0.9 three of four are right; at 0.75 one of two.
    assert expected_calibration_error(p, label) == pytest.approx((4 * 0.15 + 2 * 0.25) / 6)
    assert expected_calibration_error(np.full(4, 0.75), np.full(4, 0.75)) == pytest.approx(0)
    assert expected_calibration_error(np.ones(3), np.zeros(3)) == 1.0
    doubled = expected_calibration_error(p[[0, 5]], label[[0, 5]], np.array([3.0, 1.0]))
    assert doubled == pytest.approx((3 * 0.1 + 1 * 0.75) / 4)


def test_held_out_prompts_are_never_learned_from():
    data = pairs(60, prompts=15)
    kept, apart = split(data, 0.2)
    assert len(kept) + len(apart) == 60
    assert {r.prompt_ids for r in kept}.isdisjoint(r.prompt_ids for r in apart)
    assert len({r.prompt_ids for r in apart}) == 3
    assert set(split(data[::-1], 0.2)[1]) == set(apart)
    one_prompt = [Pair((5,), r.chosen_ids, r.rejected_ids) for r in data]
    kept, apart = split(one_prompt, 0.1)
    assert len(apart) == 6 and set(kept).isdisjoint(apart)
    many = [Pair((i % 90 + 2, i), r.chosen_ids, r.rejected_ids)
            for i, r in enumerate(data * 40, start=2)]  # fmt: skip
    kept, apart = split(many, 0.5)
    assert len(apart) == 512 and len(kept) == 2400 - 512
    with pytest.raises(UserError, match="nothing to split"):
        split(data[:1] * 3, 0.5)


def test_mistakes_are_named():
    reward_model = RewardModel(model())
    with pytest.raises(UserError, match="2 prompts and 1 completions"):
        reward_model.score([[5], [6]], [[5]])
    with pytest.raises(UserError, match="context is 64"):
        reward_model.score([[5] * 60], [[5] * 5])
    with pytest.raises(UserError, match="all score the same"):
        reward_model.normalize(completions(1) * 3)
    with pytest.raises(UserError, match="members is 0"):
        RewardModel(model(), members=0)
    with pytest.raises(UserError, match="normalize_samples=1"):
        RewardConfig(normalize_samples=1)
    with pytest.raises(UserError, match="data is empty"):
        learner(model(), [])

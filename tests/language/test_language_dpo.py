"""DPO and its relatives: what they minimize, what they hold on to, what they learn."""

import math

import numpy as np
import pytest
import torch
from preference_toys import (
    LIKED,
    assert_close,
    equal_states,
    exact,
    gradients,
    ids,
    model,
    pairs,
    without_time,
)

from tether.errors import NonFiniteError, RunError, UserError
from tether.language.data.tokens import Completion, Pair, collate
from tether.language.learners.means import Means
from tether.language.learners.reference_log_probs import fingerprint
from tether.language.methods.dpo import learner as dpo_module
from tether.language.methods.dpo.learner import DPOConfig, DPOLearner
from tether.language.methods.dpo.losses import mismatched
from tether.language.models.logprobs import token_log_probs
from tether.learning import Run

QUIET = {"progress": False, "sinks": (), "checkpoint_every_seconds": None}
FAST = {"learning_rate": 1e-3, "schedule": "constant"}
LOSSES = ["dpo", "ipo", "simpo", "orpo", "kto", "unlikelihood", "preferred_ft"]
SOFT = (1.0, 0.3, 0.8, 0.5)


def learner(language_model, data, *, total=96, held_out=(), reference=None, **settings):
    config = DPOConfig(**{"batch_size": 16, **settings})
    return DPOLearner(
        config,
        language_model,
        data,
        seed=0,
        total_steps=total,
        held_out=held_out,
        reference=reference,
    )


def prepared(*arguments, **settings) -> DPOLearner:
    """A learner whose next iteration is an update."""
    made = learner(*arguments, **settings)
    while made.prepare():
        pass
    return made


def moved(made: DPOLearner, steps: int = 3) -> DPOLearner:
    """A learner whose policy has left its reference."""
    for _ in range(steps):
        made.iterate()
    return made


def log_prob(language_model, prompt_ids, completion_ids) -> torch.Tensor:
    """Without batching, sharing or caching: log pi(y|x), summed over tokens."""
    item = Completion(prompt_ids, completion_ids)
    return token_log_probs(language_model, collate([item], pad_id=0))[0].sum()


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


@pytest.mark.parametrize("lora", [False, True])
def test_at_the_reference_the_loss_is_log_two_and_no_answer_is_preferred(lora):
    made = prepared(model(lora), pairs(40, labels=SOFT))
    metrics = made.iterate()
    assert metrics["loss"] == pytest.approx(math.log(2), rel=2e-6)
    for name in ("reward/margin", "reward/chosen", "reward/rejected", "kl/reverse"):
        assert metrics[name] == pytest.approx(0, abs=2e-5)


@pytest.mark.parametrize("steps", [0, 4])
def test_the_gradient_is_the_difference_weighted_by_how_wrong_the_pair_is(steps):
    """-beta sigmoid(-margin) (grad log pi(y_w|x) - grad log pi(y_l|x)), the paper's section 4."""
    data = pairs(16)
    made = moved(prepared(exact(), data, beta=0.3, **FAST), steps)
    reference = exact()
    found = gradients(made, [0])
    pair, policy = data[0], made.language_model
    chosen, rejected = (log_prob(policy, pair.prompt_ids, i.completion_ids)
                        for i in pair.as_completions())  # fmt: skip
    with torch.no_grad():
        base = [log_prob(reference, pair.prompt_ids, i.completion_ids)
                for i in pair.as_completions()]  # fmt: skip
    margin = 0.3 * float((chosen - base[0]).detach() - (rejected - base[1]).detach())
    assert margin == pytest.approx(0, abs=1e-9) if steps == 0 else abs(margin) > 0.05
    parameters = dict(policy.model.named_parameters())
    up = torch.autograd.grad(chosen, list(parameters.values()), allow_unused=True)
    down = torch.autograd.grad(rejected, list(parameters.values()), allow_unused=True)
    weight = -0.3 * sigmoid(-margin)
    expected = {
        f"model.{name}": weight * (a - b)
        for name, a, b in zip(parameters, up, down, strict=True)
        if a is not None
    }
    assert_close(found, expected, 1e-6)


def test_a_soft_label_of_one_half_teaches_nothing_at_the_start():
    made = prepared(exact(), pairs(8, labels=(0.5,)))
    assert max(float(g.abs().max()) for g in gradients(made, range(8)).values()) < 1e-7


@pytest.mark.parametrize("loss", LOSSES)
def test_swapping_the_completions_and_the_label_changes_nothing(loss):
    data = pairs(8, labels=SOFT)
    swapped = [Pair(p.prompt_ids, p.rejected_ids, p.chosen_ids, 1 - p.label) for p in data]
    found = gradients(prepared(exact(), swapped, loss=loss), range(8))
    expected = gradients(prepared(exact(), data, loss=loss), range(8))
    assert_close(found, expected, 1e-6)


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("settings", [{"micro_batch_size": 3}, {"shared_prompt": False}])
def test_splitting_and_sharing_change_neither_loss_nor_gradient(loss, settings):
    data = pairs(16, labels=SOFT, prompts=5)
    plain = moved(prepared(exact(), data, loss=loss, micro_batch_size=99, **FAST), 1)
    other = moved(prepared(exact(), data, loss=loss, **settings, **FAST), 1)
    assert_close(gradients(other, range(11)), gradients(plain, range(11)), 1e-6)
    found, expected = other.iterate(), plain.iterate()
    for name, value in without_time(expected).items():
        assert found[name] == pytest.approx(value, rel=1e-5, abs=1e-6), name


@pytest.mark.parametrize("lora", [False, True])
@pytest.mark.parametrize("precompute", [False, True])
def test_the_reference_never_moves(lora, precompute):
    data = pairs(48)
    made = moved(prepared(model(lora), data, precompute_reference=precompute, **FAST), 6)
    start = model(lora)
    with torch.no_grad():
        expected = [
            [float(log_prob(start, p.prompt_ids, i.completion_ids)) for i in p.as_completions()]
            for p in data
        ]
        now = float(log_prob(made.language_model, data[0].prompt_ids, data[0].chosen_ids))
    assert abs(now - expected[0][0]) > 0.1
    found = made._records[0].get(range(48), made._ask_reference)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)
    if made._reference is not None:
        # What is asked now answers as it did then.
        np.testing.assert_allclose(
            made._ask_reference(made._records[0].groups), expected, rtol=1e-5
        )


def test_asking_the_reference_first_or_along_the_way_is_the_same():
    first, along = (
        # After one step: at the reference itself, rounding decides which answer is preferred.
        moved(prepared(exact(), pairs(48), precompute_reference=flag, **FAST), 1)
        for flag in (True, False)
    )
    for _ in range(2):
        found, expected = along.iterate(), first.iterate()
        for name, value in without_time(expected).items():
            assert found[name] == pytest.approx(value, rel=1e-5, abs=1e-6), name


def test_the_preparation_comes_in_pieces_that_take_no_steps(monkeypatch):
    monkeypatch.setattr(dpo_module, "_PREPARED_AT_ONCE", 10)
    made = learner(model(), pairs(25), held_out=pairs(5, seed=3))
    shares = []
    while "reference/done" in (metrics := made.iterate()):
        shares.append(metrics["reference/done"])
        assert made.steps == 0
    assert shares == pytest.approx([10 / 30, 20 / 30, 25 / 30, 1.0])
    assert made.steps == 16


def expected_loss(loss: str, made: DPOLearner, reference) -> float:
    """The paper's formula of each loss for the first pair, from token log-probabilities alone."""
    pair, policy = made.data[0], made.language_model
    with torch.no_grad():
        w, r = (float(log_prob(policy, pair.prompt_ids, i.completion_ids))
                for i in pair.as_completions())  # fmt: skip
        ref = [float(log_prob(reference, pair.prompt_ids, i.completion_ids))
               for i in pair.as_completions()]  # fmt: skip
        other = mismatched(made.data, made.data, context=64)[0]
        gap = float(log_prob(policy, other.prompt_ids, other.completion_ids)) - float(
            log_prob(reference, other.prompt_ids, other.completion_ids)
        )
    a, b = len(pair.chosen_ids), len(pair.rejected_ids)
    hw, hr = w - ref[0], r - ref[1]
    z = max(0.0, gap)
    odds_w, odds_r = (math.exp(x) / (1 - math.exp(x)) for x in (w / a, r / b))
    return {
        "dpo": -math.log(sigmoid(0.4 * (hw - hr))),
        "ipo": (hw - hr - 1 / 0.8) ** 2,
        "ipo-mean": (hw / a - hr / b - 1 / 0.8) ** 2,
        "simpo": -math.log(sigmoid(0.4 * (w / a - r / b) - 0.7)),
        "orpo": -w / a - 0.3 * math.log(sigmoid(math.log(odds_w / odds_r))),
        "kto": 0.5 * (1.2 * (1 - sigmoid(0.4 * (hw - z))) + 0.9 * (1 - sigmoid(0.4 * (z - hr)))),
        "unlikelihood": -w + 0.6 * r,
        "preferred_ft": -w,
    }[loss]


@pytest.mark.parametrize("loss", [*LOSSES, "ipo-mean"])
def test_every_loss_is_its_papers_formula(loss):
    data = pairs(2, seed=4)
    name = loss.removesuffix("-mean")
    used = {
        "dpo": {"beta": 0.4},
        "ipo": {"beta": 0.4, "ipo_normalization": "mean" if loss == "ipo-mean" else "sum"},
        "simpo": {"beta": 0.4, "gamma": 0.7},
        "orpo": {"orpo_lambda": 0.3},
        "kto": {"beta": 0.4, "desirable_weight": 1.2, "undesirable_weight": 0.9},
        "unlikelihood": {"unlikelihood_alpha": 0.6},
    }
    settings = {"loss": name, "batch_size": 1, **used.get(name, {})}
    made = moved(prepared(exact(), data, **settings, **FAST), 3)
    with torch.no_grad():
        means = Means()
        made._read(data[:1], made._opinion(0, [0]), made._others(0, [0]), means, learn=False)
    assert means.read()["loss"] == pytest.approx(expected_loss(loss, made, exact()), rel=1e-5)


def test_ktos_reference_point_is_a_constant():
    """The gradient of kto is that of its formula with z held fixed."""
    data = pairs(6, prompts=3)
    made = moved(prepared(exact(), data, loss="kto", batch_size=6, **FAST), 2)
    found = gradients(made, range(6))
    policy, reference = made.language_model, exact()
    with torch.no_grad():
        z = torch.stack([
            log_prob(policy, o.prompt_ids, o.completion_ids)
            - log_prob(reference, o.prompt_ids, o.completion_ids)
            for o in mismatched(data, data, context=64)
        ]).mean().clamp(min=0)  # fmt: skip
    policy.model.zero_grad(set_to_none=True)
    total = torch.zeros((), dtype=torch.float64)
    for pair in data:
        for item, sign in zip(pair.as_completions(), (1, -1), strict=True):
            with torch.no_grad():
                base = log_prob(reference, item.prompt_ids, item.completion_ids)
            h = log_prob(policy, item.prompt_ids, item.completion_ids) - base
            total = total + torch.sigmoid(-sign * 0.1 * (h - z))
    (total / 12).backward()
    expected = {f"model.{n}": p.grad for n, p in policy.model.named_parameters()
                if p.grad is not None}  # fmt: skip
    assert_close(found, expected, 1e-6)


def test_mismatched_completions_belong_to_other_prompts_and_fit():
    data = pairs(9, prompts=2) + pairs(3, seed=5, prompts=1)
    own = {record.prompt_ids: set() for record in data}
    for record in data:
        own[record.prompt_ids] |= {record.chosen_ids, record.rejected_ids}
    items = mismatched(data, data, context=64)
    assert [item.prompt_ids for item in items] == [record.prompt_ids for record in data]
    assert all(item.completion_ids not in own[item.prompt_ids] for item in items)
    short = mismatched(data, data, context=8)
    assert all(len(i.prompt_ids) + len(i.completion_ids) <= 8 for i in short)
    with pytest.raises(UserError, match="all records have the same prompt"):
        learner(model(), pairs(4, prompts=1), loss="kto")


@pytest.mark.parametrize(
    ("loss", "settings"),
    [
        ("dpo", {}),
        ("dpo", {"lora": True, "learning_rate": 1e-2}),
        ("ipo", {}),
        ("kto", {"beta": 0.5}),
        ("simpo", {"learning_rate": 3e-3}),
        ("orpo", {"learning_rate": 3e-3, "orpo_lambda": 3.0}),
    ],
)
def test_it_learns_what_the_teacher_likes(loss, settings):
    settings = {**FAST, "loss": loss, **settings}
    policy = model(settings.pop("lora", False))
    prompt = tuple(ids(np.random.default_rng(2), 4))
    with torch.no_grad():
        before = log_prob(policy, prompt, (LIKED,))
    made = learner(policy, pairs(320), total=640, held_out=pairs(100, seed=5), **settings)
    while made.steps < made.total_steps:
        metrics = made.iterate()
    with torch.no_grad():
        after = log_prob(policy, prompt, (LIKED,))
    assert metrics["held_out/reward/accuracy"] > 0.95
    assert after > before + 0.5


@pytest.mark.parametrize(
    "settings", [{}, {"lora": True}, {"precompute_reference": False}, {"loss": "kto"}]
)
def test_a_killed_run_ends_with_the_same_bits(settings, tmp_path):
    settings = dict(settings)
    lora = settings.pop("lora", False)

    def built():
        data, held_out = pairs(40), pairs(6, seed=3)
        return learner(model(lora), data, held_out=held_out, evaluate_every=2, **settings, **FAST)

    straight = built()
    while straight.prepare():
        pass
    lines = [without_time(straight.iterate()) for _ in range(6)]
    first = built()
    run = Run.create(tmp_path / "run", method="dpo", config={}, spec={})
    run.train(first, 40, **QUIET)
    resumed = built()
    reopened = Run.open(tmp_path / "run")
    reopened.resume(resumed)
    assert resumed.steps == 40
    assert [without_time(resumed.iterate()) for _ in range(3)] == lines[3:]
    assert equal_states(resumed.state(), straight.state())


def test_a_run_killed_while_it_prepares_goes_on_there(monkeypatch):
    monkeypatch.setattr(dpo_module, "_PREPARED_AT_ONCE", 10)
    straight, first, resumed = (learner(model(), pairs(25), **FAST) for _ in range(3))
    first.iterate()
    resumed.restore(first.state())
    asked = resumed._records[0].missing
    assert len(asked) == 15
    for _ in range(3):
        straight.iterate()
    lines = [without_time(straight.iterate()) for _ in range(2)]
    for _ in range(2):
        resumed.iterate()
    assert [without_time(resumed.iterate()) for _ in range(2)] == lines


def test_what_the_reference_said_is_kept_for_other_runs(monkeypatch, tmp_path):
    monkeypatch.setenv("TETHER_CACHE", str(tmp_path))
    data = pairs(20)
    first = prepared(model(), data, keep_reference=True, **FAST)
    second = learner(model(), data, keep_reference=True, beta=0.5, **FAST)

    def never(*_):
        raise AssertionError("the reference was asked again")

    monkeypatch.setattr(second, "_ask_reference", never)
    assert "reference/done" not in second.iterate()
    assert first.iterate()["loss"] == pytest.approx(math.log(2), rel=1e-5)
    # Another model or other data are another question.
    for other in (learner(model(seed=1), data, keep_reference=True),
                  learner(model(), data[:-1], keep_reference=True)):  # fmt: skip
        assert "reference/done" in other.iterate()
    for file in (tmp_path / "reference").iterdir():
        file.write_bytes(b"damaged")
    assert "reference/done" in learner(model(), data, keep_reference=True).iterate()


def test_another_reference_may_be_given():
    made = prepared(model(), pairs(16), reference=model(seed=1), **FAST)
    assert abs(made.iterate()["loss"] - math.log(2)) > 0.01


def test_a_checkpoint_of_another_reference_or_of_other_data_is_refused():
    state = prepared(model(), pairs(20)).state()
    for other in (learner(model(seed=1), pairs(20)), learner(model(), pairs(20, seed=1))):
        with pytest.raises(RunError, match="belong to another reference model or to other data"):
            other.restore(state)


def test_measuring_changes_nothing_and_needs_the_reference():
    made = moved(prepared(model(), pairs(32), held_out=pairs(8, seed=3), **FAST), 2)
    before = made.state()
    assert made.evaluate(made.held_out) == made.evaluate(made.held_out)
    assert equal_states(made.state(), before)
    with pytest.raises(UserError, match="no longer loaded"):
        made.evaluate(pairs(4, seed=8))
    kept = moved(prepared(model(), pairs(32), held_out=pairs(8, seed=3),
                          precompute_reference=False, **FAST), 2)  # fmt: skip
    found = kept.evaluate([*made.held_out, *pairs(4, seed=8)])
    assert found["loss"] > 0 and kept.evaluate(made.held_out) == pytest.approx(
        made.evaluate(made.held_out), rel=1e-4, abs=1e-5
    )


def test_losses_without_reference_never_ask_it():
    for loss in ("simpo", "orpo", "unlikelihood", "preferred_ft"):
        made = learner(model(), pairs(16), loss=loss)
        metrics = made.iterate()
        assert made.steps == 16 and "kl/reverse" not in metrics


def test_the_measurements_look_at_the_better_completion():
    data = pairs(6, labels=(1.0, 0.2, 0.5))
    made = moved(prepared(exact(), data, **FAST), 3)
    metrics = made.iterate()
    assert set(metrics) >= {
        "loss", "reward/accuracy", "reward/margin", "reward/chosen", "reward/rejected",
        "logprob/chosen", "logprob/rejected", "kl/reverse", "tokens/length",
        "optimizer/gradient_norm", "optimizer/learning_rate", "time/tokens_per_second",
    }  # fmt: skip
    means = Means()
    with torch.no_grad():
        made._read(data, made._opinion(0, range(6)), (), means, learn=False)
        reference = exact()
        rewards = [
            [0.1 * float(log_prob(made.language_model, p.prompt_ids, i.completion_ids)
                         - log_prob(reference, p.prompt_ids, i.completion_ids))
             for i in p.as_completions()]
            for p in data
        ]  # fmt: skip
    better = [r[p.label < 0.5] for r, p in zip(rewards, data, strict=True)]
    worse = [r[p.label >= 0.5] for r, p in zip(rewards, data, strict=True)]
    margins = [b - w for b, w, p in zip(better, worse, data, strict=True) if p.label != 0.5]
    found = means.read()
    assert found["reward/chosen"] == pytest.approx(np.mean(better), abs=1e-6)
    assert found["reward/rejected"] == pytest.approx(np.mean(worse), abs=1e-6)
    assert found["reward/margin"] == pytest.approx(np.mean(margins), abs=1e-6)
    assert found["reward/accuracy"] == np.mean(np.array(margins) > 0)
    assert found["kl/reverse"] == pytest.approx(-np.mean(rewards) / 0.1, abs=1e-5)
    lengths = [len(i.completion_ids) for p in data for i in p.as_completions()]
    assert found["tokens/length"] == np.mean(lengths)


def test_nan_stops_the_run_before_a_parameter_moves():
    made = prepared(model(), pairs(16), **FAST)
    before = {n: p.detach().clone() for n, p in made.language_model.model.named_parameters()}
    made._records[0]._values[3] = np.inf
    with pytest.raises(NonFiniteError, match="learning_rate"):
        made.iterate()
    for name, parameter in made.language_model.model.named_parameters():
        torch.testing.assert_close(parameter.detach(), before[name], rtol=0, atol=0)


def test_a_reference_that_gives_nan_ends_the_run():
    broken = model()
    with torch.no_grad():
        broken.head.weight[LIKED] = math.nan
    with pytest.raises(NonFiniteError, match="the reference's log-probability became nan for rec"):
        learner(broken, pairs(20)).iterate()


def test_the_reference_is_known_by_its_settings_too():
    made, same, other = model(), model(), model(rms_norm_eps=1e-2)
    assert fingerprint(made) == fingerprint(same)
    for name, parameter in made.model.named_parameters():
        assert torch.equal(parameter, dict(other.model.named_parameters())[name])
    assert fingerprint(made) != fingerprint(other)


def test_beta_has_a_default_that_suits_the_loss():
    assert DPOConfig().strength == 0.1
    assert DPOConfig(loss="simpo").strength == 2.0
    assert DPOConfig(loss="simpo", beta=3.0).strength == 3.0
    with pytest.raises(UserError, match="loss"):
        DPOConfig(loss="dpq")

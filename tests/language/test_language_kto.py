"""KTO from single completions that were found good or bad."""

import json
import logging
from pathlib import Path

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
from toy_texts import save_toy

from tether import cli
from tether.errors import UserError
from tether.language.data.tokens import Completion, Judgement, collate, truncate
from tether.language.learners.means import Means
from tether.language.methods.dpo.learner import DPOConfig, DPOLearner
from tether.language.methods.dpo.losses import mismatched
from tether.language.models.logprobs import token_log_probs
from tether.learning import Run, read_metrics

FAST = {"learning_rate": 1e-3, "schedule": "constant"}
QUIET = {"progress": False, "sinks": (), "checkpoint_every_seconds": None}
SOFT = (1.0, 0.7, 0.2, 0.9, 1.0, 0.0)


def judgements(count, seed=0, *, labels=(1.0, 0.0)) -> list[Judgement]:
    """Where the label is above 1/2 the completion holds the liked token."""
    made = []
    for index, pair in enumerate(pairs(count, seed)):
        label = labels[index % len(labels)]
        completion = pair.chosen_ids if label > 0.5 else pair.rejected_ids
        made.append(Judgement(pair.prompt_ids, completion, label))
    return made


def learner(language_model, data, *, total=96, held_out=(), **settings) -> DPOLearner:
    config = DPOConfig(**{"loss": "kto", "batch_size": 16, **settings})
    return DPOLearner(config, language_model, data, seed=0, total_steps=total, held_out=held_out)


def moved(made: DPOLearner, updates: int) -> DPOLearner:
    """A learner whose policy has left its reference."""
    while made.prepare():
        pass
    for _ in range(updates):
        made.iterate()
    return made


def log_prob(language_model, item) -> torch.Tensor:
    return token_log_probs(language_model, collate([item], pad_id=0))[0].sum()


def formula(policy, reference, data, others, *, beta, liked=1.0, disliked=1.0):
    """KTO's equation 8 and what is measured beside it, one completion at a time."""
    with torch.no_grad():
        gaps = [log_prob(policy, o) - log_prob(reference, o) for o in others]
    z = torch.stack(gaps).mean().clamp(min=0)
    total, ratios = torch.zeros((), dtype=torch.float64), []
    for item in data:
        with torch.no_grad():
            base = log_prob(reference, item)
        h = log_prob(policy, item) - base
        good = liked * (1 - torch.sigmoid(beta * (h - z)))
        bad = disliked * (1 - torch.sigmoid(beta * (z - h)))
        total = total + item.label * good + (1 - item.label) * bad
        ratios.append(float(h.detach()))
    return total / len(data), np.array(ratios), float(z)


@pytest.mark.parametrize("precompute", [True, False])
def test_loss_gradient_and_measurements_are_the_papers(precompute):
    data = judgements(10, labels=SOFT)
    settings = {"desirable_weight": 1.3, "undesirable_weight": 0.8, "beta": 0.4}
    made = moved(
        learner(exact(), data, precompute_reference=precompute, **settings, **FAST), updates=3
    )
    found = gradients(made, range(10))
    policy, reference = made.language_model, exact()
    others = mismatched(data, data, context=64)
    loss, h, z = formula(policy, reference, data, others, beta=0.4, liked=1.3, disliked=0.8)
    assert z > 1e-3
    policy.model.zero_grad(set_to_none=True)
    loss.backward()
    expected = {f"model.{n}": p.grad for n, p in policy.model.named_parameters()
                if p.grad is not None}  # fmt: skip
    assert_close(found, expected, 1e-6)

    means = Means()
    made.accumulate(0, range(10), means)
    metrics = means.read()
    assert metrics["loss"] == pytest.approx(float(loss.detach()), rel=1e-6)
    label = np.array([item.label for item in data])
    assert metrics["reward/chosen"] == pytest.approx(0.4 * h[label > 0.5].mean(), abs=1e-6)
    assert metrics["reward/rejected"] == pytest.approx(0.4 * h[label < 0.5].mean(), abs=1e-6)
    assert metrics["reward/accuracy"] == np.mean((h > z) == (label > 0.5))
    assert metrics["kl/reverse"] == pytest.approx(-h.mean(), abs=1e-5)
    assert metrics["tokens/length"] == np.mean([len(item.completion_ids) for item in data])


def test_the_reference_point_is_never_negative():
    """A policy less sure of mismatched completions than its reference stands at 0."""
    data = judgements(8)
    made = moved(learner(exact(), data), updates=0)
    made._records[0]._values[:, 1] += 50.0
    means = Means()
    made.accumulate(0, range(8), means)
    assert means.read()["kl/mismatched"] == pytest.approx(-50.0, abs=1e-4)
    # At the reference, and held against 0, every completion costs one half.
    assert means.read()["loss"] == pytest.approx(0.5, abs=1e-6)


@pytest.mark.parametrize("settings", [{"micro_batch_size": 3}, {"shared_prompt": False}])
def test_splitting_changes_neither_loss_nor_gradient(settings):
    data = judgements(16, labels=SOFT)
    plain = moved(learner(exact(), data, micro_batch_size=99, **FAST), updates=1)
    other = moved(learner(exact(), data, **settings, **FAST), updates=1)
    assert_close(gradients(other, range(11)), gradients(plain, range(11)), 1e-6)


def test_mismatched_completions_belong_to_other_prompts():
    data = judgements(7)
    own = {item.prompt_ids: item.completion_ids for item in data}
    items = mismatched(data, data, context=64)
    assert [item.prompt_ids for item in items] == [item.prompt_ids for item in data]
    assert all(item.completion_ids != own[item.prompt_ids] for item in items)


@pytest.mark.parametrize("lora", [False, True])
def test_it_learns_what_the_teacher_likes(lora):
    policy = model(lora)
    probe = Completion(ids(np.random.default_rng(2), 4), (LIKED,))
    with torch.no_grad():
        before = float(log_prob(policy, probe))
    rate = 1e-2 if lora else 3e-3
    made = learner(
        *(policy, judgements(320)),
        total=960, held_out=judgements(60, seed=5), beta=0.5, schedule="constant",
        learning_rate=rate,
    )  # fmt: skip
    while made.steps < made.total_steps:
        metrics = made.iterate()
    with torch.no_grad():
        after = float(log_prob(policy, probe))
    assert metrics["held_out/reward/accuracy"] > 0.9
    assert metrics["held_out/reward/chosen"] > metrics["held_out/reward/rejected"] + 0.5
    assert after > before + 0.5


def test_a_stopped_run_ends_with_the_same_bits(tmp_path):
    def built():
        return learner(model(), judgements(40), held_out=judgements(6, seed=3), **FAST)

    straight = built()
    while straight.prepare():
        pass
    lines = [without_time(straight.iterate()) for _ in range(4)]
    Run.create(tmp_path / "run", method="dpo", config={}, spec={}).train(built(), 32, **QUIET)
    resumed = built()
    Run.open(tmp_path / "run").resume(resumed)
    assert [without_time(resumed.iterate()) for _ in range(2)] == lines[2:]
    assert equal_states(resumed.state(), straight.state())


def test_what_it_cannot_learn_from_is_told():
    with pytest.raises(UserError, match=r"loss is dpo.*expected kto"):
        learner(model(), judgements(4), loss="dpo")
    with pytest.raises(UserError, match="both pairs and single completions"):
        learner(model(), [*judgements(4), *pairs(4)])
    with pytest.raises(UserError, match=r"label is 1\.5; expected the probability"):
        Judgement((5,), (6,), 1.5)
    with pytest.raises(UserError, match="label is nan"):
        Judgement((5,), (6,), float("nan"))
    long = Judgement(tuple(range(2, 12)), tuple(range(2, 12)), 0.25)
    kept, account = truncate([long], context=12)
    assert kept[0].label == 0.25 and account.tokens == 8


def test_a_lopsided_choice_of_completions_is_warned_of(caplog):
    with caplog.at_level(logging.WARNING):
        learner(model(), judgements(8))
        assert not caplog.records
        learner(model(), judgements(8, labels=(1.0, 0.0, 0.0, 0.0)))
        assert "2 completions are good and 6 bad" in caplog.text
        caplog.clear()
        learner(model(), judgements(8, labels=(1.0, 0.0, 0.0, 0.0)), desirable_weight=3.5)
        assert not caplog.records


def test_the_command_reads_verdicts(tmp_path: Path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    rows = [
        {"prompt": f"Is {i}?", "completion": (" yes", " no no")[i % 2], "label": verdict}
        for i, verdict in enumerate([True, False, 0.9, 0.1] * 4)
    ]
    Path("verdicts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    command = ["dpo", "--model", str(save_toy(tmp_path / "toy")), "--data", "verdicts.jsonl"]
    command += ["--batch-size", "4", "--total-steps", "8", "--quiet"]
    assert cli.main([*command, "--loss", "kto", "--out", "run", "--json"]) == 0
    summary = json.loads(capfd.readouterr().out.splitlines()[-1])
    assert summary["examples"] == 16
    assert "kl/mismatched" in read_metrics("run")[-1]
    assert cli.main(["resume", "run", "--total-steps", "12", "--quiet"]) == 0
    assert cli.main([*command, "--out", "other"]) == 2
    told = capfd.readouterr().err.splitlines()[-1]
    assert "loss is 'dpo'" in told and told.endswith("expected loss kto")
    assert not Path("other").exists()

"""Instruction tuning: the loss and its gradient, layouts that change neither, and going on."""

import dataclasses
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from random_models import EOS, VOCABULARY, language_model

from tether.errors import NonFiniteError, UserError
from tether.language.data.tokens import Example
from tether.language.learners.optimizer import OptimizationConfig, Optimizer
from tether.language.learners.order import Order
from tether.language.methods.sft import SFTConfig, SFTLearner, pack
from tether.language.models.adapters import LoraSettings
from tether.language.models.language_model import LanguageModel
from tether.learning import Run, load_checkpoint, read_metrics, save_checkpoint


def examples(count: int, seed: int = 0, longest: int = 9) -> list[Example]:
    """Ragged examples; every third with later turns that are not to be learned."""
    draw = np.random.default_rng(seed)
    made = []
    for index in range(count):
        prompt, completion = (
            tuple(draw.integers(2, VOCABULARY, size=draw.integers(1, longest)).tolist())
            for _ in range(2)
        )
        mask = None
        if index % 3 == 0:
            mask = (*(bool(flag) for flag in draw.integers(0, 2, size=len(completion))), True)
        made.append(Example(prompt, (*completion, EOS), mask))
    return made


def learner(
    model: LanguageModel, data: Sequence[Example], *, total_steps: int = 64, **settings: Any
) -> SFTLearner:
    settings = {"held_out": 0.0, "learning_rate": 1e-3, "warmup": 0.0, **settings}
    return SFTLearner(SFTConfig(**settings), model, data, seed=3, total_steps=total_steps)


def first_gradient(model: LanguageModel, data: Sequence[Example], **settings: Any) -> Any:
    """Loss, and gradient of the first batch, taken where the optimizer would use it."""
    taken: dict[str, torch.Tensor] = {}
    made = learner(model, data, batch_size=len(data), **settings)
    update = made.optimizer.update

    def spy(*arguments: Any) -> Any:
        taken.update({n: p.grad.clone() for n, p in model.model.named_parameters()})
        return update(*arguments)

    made.optimizer.update = spy  # type: ignore[method-assign]
    return made.iterate(), taken


def same_gradient(a: Any, b: Any) -> None:
    assert a[0]["loss"] == pytest.approx(b[0]["loss"], rel=1e-10)
    assert a[0]["optimizer/gradient_norm"] == pytest.approx(b[0]["optimizer/gradient_norm"])
    for name, gradient in a[1].items():
        torch.testing.assert_close(gradient, b[1][name], rtol=1e-8, atol=1e-12)


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_the_loss_is_that_of_the_model_library(kind: str) -> None:
    data = examples(5)
    model = language_model(kind, dtype=torch.float64)
    total = torch.zeros((), dtype=torch.float64)
    count = 0
    for example in data:
        mask = example.loss_mask or (True,) * len(example.completion_ids)
        labels = [-100] * len(example.prompt_ids) + [
            token if flag else -100
            for token, flag in zip(example.completion_ids, mask, strict=True)
        ]
        ids = torch.tensor([[*example.prompt_ids, *example.completion_ids]])
        # One example at a time, with neither padding nor positions of our making.
        out = model.model(input_ids=ids, labels=torch.tensor([labels]))
        total = total + out.loss * sum(mask)
        count += sum(mask)
    (total / count).backward()
    expected = {name: p.grad.clone() for name, p in model.model.named_parameters()}
    metrics, taken = first_gradient(language_model(kind, dtype=torch.float64), data)
    # The library takes the loss in float32, whatever the parameters are.
    tolerance = 1e-6
    assert metrics["loss"] == pytest.approx(float(total.detach()) / count, rel=tolerance)
    assert metrics["tokens/length"] == count / len(data)
    for name, gradient in taken.items():
        torch.testing.assert_close(gradient, expected[name], rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("micro_batch_size", [1, 3, 64])
@pytest.mark.parametrize("packed_length", [1, 25, 64])
def test_packing_and_micro_batches_change_no_gradient(
    micro_batch_size: int, packed_length: int
) -> None:
    data = examples(13)
    plain = first_gradient(language_model(), data, micro_batch_size=64)
    packed = first_gradient(
        language_model(),
        data,
        micro_batch_size=micro_batch_size,
        packing=True,
        packed_length=packed_length,
    )
    same_gradient(plain, packed)
    same_gradient(plain, first_gradient(language_model(), data, micro_batch_size=micro_batch_size))


def test_what_one_packed_example_says_reaches_no_other() -> None:
    data = examples(6)
    changed = [*data[:-1], Example((5, 6, 7), (8, 9, EOS))]
    one, other = (
        learner(language_model(), part, packing=True, packed_length=64) for part in (data, changed)
    )
    with torch.no_grad():
        rows = [list(made._batches(part)) for made, part in ((one, data), (other, changed))]
    assert len(rows[0][0][1].input_ids) < len(data)
    total = {}
    for name, part in (("data", data), ("changed", changed)):
        total[name] = [one.evaluate([example])["loss"] for example in part]
        joined = one.evaluate(part)["loss"]
        learned = [sum(e.loss_mask or (True,) * len(e.completion_ids)) for e in part]
        apart = sum(n * v for n, v in zip(learned, total[name], strict=True)) / sum(learned)
        assert joined == pytest.approx(apart, rel=1e-12)
    assert total["data"][:-1] == total["changed"][:-1]


@given(st.lists(st.integers(1, 50), max_size=60), st.integers(1, 60))
def test_packs_hold_everything_once_and_never_too_much(lengths: list[int], capacity: int) -> None:
    rows = pack(lengths, capacity)
    assert sorted(index for row in rows for index in row) == list(range(len(lengths)))
    for row in rows:
        assert len(row) == 1 or sum(lengths[index] for index in row) <= capacity
    # Of two rows with room for each other, the second would never have been begun.
    loads = [sum(lengths[index] for index in row) for row in rows]
    assert sum(load * 2 <= capacity for load in loads) <= 1


@given(
    st.lists(st.integers(1, 9), min_size=1, max_size=80),
    st.integers(1, 12),
    st.booleans(),
    st.integers(0, 5),
)
def test_an_epoch_meets_everything_once(
    lengths: list[int], batch_size: int, bucket: bool, seed: int
) -> None:
    order = Order(lengths, batch_size, seed=seed, bucket=bucket)
    per_epoch = math.ceil(len(lengths) / batch_size)
    for _ in range(2):
        batches = [order.next() for _ in range(per_epoch)]
        assert sorted(row for batch in batches for row in batch) == list(range(len(lengths)))
    again = Order(lengths, batch_size, seed=seed, bucket=bucket)
    again.restore(order.state())
    assert [again.next() for _ in range(per_epoch)] == [order.next() for _ in range(per_epoch)]


def test_buckets_hold_examples_of_about_one_length() -> None:
    lengths = np.random.default_rng(0).integers(1, 500, size=1000)

    def padded(bucket: bool) -> int:
        order = Order(lengths.tolist(), 10, seed=0, bucket=bucket)
        return sum(10 * max(lengths[order.next()]) for _ in range(100))

    assert padded(True) < 1.1 * lengths.sum() < padded(False)
    orders = [Order(lengths.tolist(), 10, seed=seed, bucket=True).next() for seed in (0, 0, 1)]
    assert orders[0] == orders[1] != orders[2]


def test_the_step_size_rises_and_falls() -> None:
    parameter = torch.nn.Parameter(torch.zeros(2, 2))

    def rates(**settings: Any) -> list[float]:
        config = OptimizationConfig(batch_size=10, learning_rate=1.0, **settings)
        optimizer = Optimizer([parameter], config, 100)
        return [optimizer.learning_rate(steps) for steps in range(0, 100, 10)]

    assert rates(warmup=0.0, schedule="constant") == [1.0] * 10
    assert rates(warmup=0.0, schedule="linear") == pytest.approx([1 - i / 10 for i in range(10)])
    assert rates(warmup=0.2, schedule="linear")[:3] == pytest.approx([0.5, 1.0, 1.0])
    assert rates(warmup=0.2, schedule="linear")[-1] == pytest.approx(1 / 8)
    cosine = rates(warmup=0.0, schedule="cosine")
    assert cosine == pytest.approx([(1 + math.cos(math.pi * i / 10)) / 2 for i in range(10)])


def test_adamw_follows_its_equations() -> None:
    draw = np.random.default_rng(0)
    start, gradients = draw.normal(size=(3, 2)), draw.normal(size=(4, 3, 2))
    parameter = torch.nn.Parameter(torch.from_numpy(start.copy()))
    vector = torch.nn.Parameter(torch.ones(2, dtype=torch.float64))
    settings = {"batch_size": 1, "warmup": 0.0, "schedule": "constant", "weight_decay": 0.1}
    config = OptimizationConfig(learning_rate=0.01, max_gradient_norm=0.5, **settings)
    optimizer = Optimizer([parameter, vector], config, 4)
    m, v, x = np.zeros((3, 2)), np.zeros((3, 2)), start
    for step, gradient in enumerate(gradients, start=1):
        parameter.grad, vector.grad = torch.from_numpy(gradient.copy()), torch.zeros_like(vector)
        metrics = optimizer.update(step - 1)
        norm = np.sqrt((gradient**2).sum())
        assert metrics["optimizer/gradient_norm"] == pytest.approx(norm)
        g = gradient * min(1.0, 0.5 / norm)
        m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g**2
        x = x - 0.01 * 0.1 * x
        x = x - 0.01 * (m / (1 - 0.9**step)) / (np.sqrt(v / (1 - 0.999**step)) + 1e-8)
        np.testing.assert_allclose(parameter.detach().numpy(), x, rtol=1e-5)
    # Vectors do not decay.
    assert vector.tolist() == [1.0, 1.0]


def test_steps_too_small_for_bfloat16_are_not_lost() -> None:
    config = OptimizationConfig(learning_rate=1e-4, warmup=0.0, schedule="constant")
    parameter = torch.nn.Parameter(torch.ones(2, 2, dtype=torch.bfloat16))
    optimizer = Optimizer([parameter], config, 1000)
    for step in range(100):
        parameter.grad = torch.ones_like(parameter)
        optimizer.update(step)
    # One step of 1e-4 would leave 1 as it is: the next bfloat16 below it is 0.996.
    assert parameter.tolist()[0][0] == pytest.approx(0.99, abs=0.003)


def test_a_batch_with_nothing_to_learn_is_told() -> None:
    @dataclasses.dataclass
    class Mute:
        prompt_ids: tuple[int, ...] = (2, 3)
        completion_ids: tuple[int, ...] = (4, EOS)
        loss_mask: tuple[bool, ...] = (False, False)

    made = learner(language_model(), examples(4), batch_size=4)
    made.data = [Mute()] * 4  # type: ignore[list-item]
    with pytest.raises(UserError, match="no token of the batch at step 0 is to be learned"):
        made.iterate()
    with pytest.raises(UserError, match="loss_mask masks every token"):
        Example((2, 3), (4, EOS), (False, False))


def test_a_loss_that_is_no_number_names_its_rows_and_moves_nothing() -> None:
    data = [Example((2, 3), (4, EOS)), Example((2, 96), (5, EOS)), Example((6,), (7, EOS))]
    model = language_model()
    with torch.no_grad():
        # The word that only the second example has is not a number.
        model.model.transformer.wte.weight[96] = math.nan
    before = {name: p.clone() for name, p in model.model.named_parameters()}
    # Its own logit is no number for anyone, so it must not be among the outputs.
    model.model.lm_head.weight = torch.nn.Parameter(torch.randn(VOCABULARY, 32).double())
    made = learner(model, data, batch_size=3)
    with pytest.raises(NonFiniteError) as error:
        made.iterate()
    assert "loss became nan at step 0, in example 2 of the data" in str(error.value)
    for name, parameter in model.model.named_parameters():
        if name in before and name != "lm_head.weight":
            torch.testing.assert_close(parameter, before[name], equal_nan=True, rtol=0, atol=0)
    assert made.steps == 0


def toy_language(count: int, seed: int) -> list[Example]:
    """After w comes w + 1, then w + 2: a rule that a model without it cannot guess."""
    draw = np.random.default_rng(seed)
    return [Example((w,), (w + 1, w + 2, EOS)) for w in draw.integers(2, 20, size=count).tolist()]


@pytest.mark.parametrize("lora", [False, True])
def test_a_toy_language_is_learned(lora: bool) -> None:
    settings = LoraSettings(rank=8, alpha=16.0) if lora else None
    model = language_model("llama", dtype=torch.float32, lora=settings)
    made = SFTLearner(
        SFTConfig(batch_size=16, learning_rate=1e-2, warmup=0.1),
        model,
        toy_language(640, 0),
        seed=0,
        total_steps=640,
        held_out=toy_language(32, 1),
    )
    first = made.iterate()
    while made.steps < 640:
        metrics = made.iterate()
    assert first["held_out/loss_before"] > 3.0
    # With adapters alone, embeddings and head stay random.
    assert metrics["held_out/loss"] < (1.5 if lora else 0.1)
    assert metrics["data/epoch"] == 1.0
    assert metrics["optimizer/learning_rate"] < 1e-4


SETTINGS: dict[str, dict[str, Any]] = {
    "full": {},
    "lora": {"lora": LoraSettings(rank=2, alpha=4.0)},
    "bfloat16": {"dtype": torch.bfloat16},
}


@pytest.mark.parametrize("name", SETTINGS)
def test_a_run_goes_on_bit_for_bit(name: str, tmp_path: Path) -> None:
    data = examples(10)

    def build() -> SFTLearner:
        model = language_model("llama", **{"dtype": torch.float32, **SETTINGS[name]})
        return learner(
            model, data, batch_size=4, held_out=0.3, evaluate_every=2, warmup=0.2, weight_decay=0.1
        )

    whole = build()
    expected = [without_time(whole.iterate()) for _ in range(7)]
    broken = build()
    got = [without_time(broken.iterate()) for _ in range(3)]
    save_checkpoint(tmp_path / "x.safetensors", broken.state(), {})
    resumed = build()
    resumed.restore(load_checkpoint(tmp_path / "x.safetensors")[0])
    got += [without_time(resumed.iterate()) for _ in range(4)]
    assert got == expected
    for (a, p), (b, q) in zip(
        whole.language_model.model.named_parameters(),
        resumed.language_model.model.named_parameters(),
        strict=True,
    ):
        assert a == b
        assert torch.equal(p, q), a


def without_time(metrics: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in metrics.items() if not name.startswith("time/")}


def test_a_run_keeps_its_promises(tmp_path: Path) -> None:
    with Run.create(tmp_path / "run", method="sft", config={}, spec={}) as run:
        made = learner(language_model(), examples(20), batch_size=4, held_out=0.2, total_steps=32)
        run.train(made, 32, progress=False, sinks=())
    rows = read_metrics(tmp_path / "run")
    assert [row["step"] for row in rows][:4] == [4, 8, 12, 16]
    named = {"loss", "tokens/length", "data/epoch", "time/tokens_per_second"}
    named |= {"optimizer/gradient_norm", "optimizer/learning_rate"}
    assert all(named <= set(row) for row in rows)
    assert "held_out/loss_before" in rows[0]
    assert "held_out/loss" in rows[-1]


def test_examples_that_do_not_fit_are_told() -> None:
    with pytest.raises(UserError, match="data is empty"):
        learner(language_model(), [])
    with pytest.raises(UserError, match=r"data\[1\].completion_ids: .* context is 64"):
        learner(language_model(), [Example((2,), (3,)), Example((2,), (3,) * 64)])
    with pytest.raises(UserError, match="holds the id 97"):
        learner(language_model(), [Example((2,), (97,))])

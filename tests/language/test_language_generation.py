"""Generation against transformers' own, against its own distribution, and against its batches."""

import numpy as np
import pytest
import torch
from random_models import EOS, VOCABULARY, completions, language_model

from tether.errors import NonFiniteError, UserError
from tether.language.data.tokens import collate
from tether.language.models import generation
from tether.language.models.generation import choose, generate
from tether.language.models.language_model import LoraSettings, reference_of
from tether.language.models.logprobs import token_log_probs

PROMPTS = [list(item.prompt_ids) for item in completions(9, longest=9)]


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_greedy_equals_transformers_one_prompt_at_a_time(kind, attention):
    model = language_model(kind, attention=attention)
    made = generate(model, PROMPTS, max_new_tokens=12, temperature=0, batch_size=4)
    for prompt, completion in zip(PROMPTS, made, strict=True):
        expected = model.model.generate(
            torch.tensor([prompt]),
            attention_mask=torch.ones(1, len(prompt), dtype=torch.int64),
            do_sample=False,
            max_new_tokens=12,
            pad_token_id=0,
        )[0, len(prompt) :].tolist()
        assert completion.prompt_ids == tuple(prompt)
        assert list(completion.completion_ids) == expected
        assert completion.finished == (expected[-1] == EOS)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_rows_do_not_depend_on_their_batch(dtype):
    model = language_model(dtype=dtype)
    seeds = list(range(100, 109))
    whole = generate(model, PROMPTS, max_new_tokens=10, seeds=seeds)
    assert len({c.completion_ids for c in whole}) == len(PROMPTS)
    for size in (1, 4):
        assert generate(model, PROMPTS, max_new_tokens=10, seeds=seeds, batch_size=size) == whole
    order = np.random.default_rng(0).permutation(9)
    mixed = generate(
        model, [PROMPTS[i] for i in order], max_new_tokens=10, seeds=[seeds[i] for i in order]
    )
    assert mixed == [whole[i] for i in order]
    part = generate(model, PROMPTS[3:5], max_new_tokens=10, seeds=seeds[3:5])
    assert part == whole[3:5]


def test_seeds_decide_and_a_longer_limit_only_goes_on():
    model = language_model()
    one = generate(model, PROMPTS, max_new_tokens=6, seeds=3)
    assert one == generate(model, PROMPTS, max_new_tokens=6, seeds=3)
    assert one != generate(model, PROMPTS, max_new_tokens=6, seeds=4)
    longer = generate(model, PROMPTS, max_new_tokens=12, seeds=3)
    for short, long in zip(one, longer, strict=True):
        assert long.completion_ids[: len(short.completion_ids)] == short.completion_ids


def test_equal_prompts_are_read_once_and_continued_apart():
    model = language_model()
    prompt = PROMPTS[1]
    seeds = [7, 8, 9, 7]
    rows: list[int] = []
    hook = model.backbone.register_forward_pre_hook(
        lambda _, __, settings: rows.append(len(settings["input_ids"])), with_kwargs=True
    )
    made = generate(model, [prompt, prompt, PROMPTS[0], prompt], max_new_tokens=8, seeds=seeds)
    hook.remove()
    assert rows[0] == 2
    assert rows[1] == 4
    alone = [
        generate(model, [p], max_new_tokens=8, seeds=[s])[0]
        for p, s in zip([prompt, prompt, PROMPTS[0], prompt], seeds, strict=True)
    ]
    assert made == alone
    assert made[0] == made[3]
    assert made[0] != made[1]


def test_finished_rows_leave_the_batch_and_end_with_the_stop_token():
    model = language_model()
    rows: list[int] = []
    hook = model.backbone.register_forward_pre_hook(
        lambda _, __, settings: rows.append(len(settings["input_ids"])), with_kwargs=True
    )
    stops = list(range(2, 20))
    made = generate(model, PROMPTS, max_new_tokens=30, stop_ids=stops, seeds=1)
    hook.remove()
    lengths = [len(c.completion_ids) for c in made]
    # Row by row, the batch of step t holds those that have not ended by then.
    assert rows[1:] == [sum(n > step for n in lengths) for step in range(1, max(lengths))]
    assert rows[-1] < len(PROMPTS)
    assert sum(c.finished for c in made) > 1
    for completion in made:
        *body, last = completion.completion_ids
        assert not set(body) & set(stops)
        assert completion.finished == (last in stops)
        assert completion.finished or len(completion.completion_ids) == 30


def test_model_stops_at_every_one_of_its_stop_tokens():
    model = language_model()
    assert model.stop_ids == (EOS,)
    other = generate(model, PROMPTS[:1], max_new_tokens=5, seeds=1)[0].completion_ids[2]
    made = generate(model, PROMPTS[:1], max_new_tokens=5, seeds=1, stop_ids=[EOS, other])[0]
    assert made.completion_ids[-1] == other
    assert made.finished


def test_samples_have_the_frequencies_of_the_model():
    model = language_model()
    prompt = PROMPTS[1]
    made = generate(
        model, [prompt] * 4000, max_new_tokens=1, temperature=0.8, seeds=5, batch_size=4000
    )
    counts = np.bincount([c.completion_ids[0] for c in made], minlength=VOCABULARY)
    with torch.no_grad():
        logits = model.model(input_ids=torch.tensor([prompt])).logits[0, -1]
    expected = 4000 * (logits / 0.8).softmax(-1).numpy()
    often = expected > 20
    assert often.sum() > 5
    # A standard deviation of a count n is sqrt(n); five of them never happen.
    assert (np.abs(counts - expected)[often] < 5 * np.sqrt(expected[often])).all()


def test_scorer_gives_sampled_tokens_the_probability_they_were_drawn_with():
    model = language_model()
    made = generate(model, PROMPTS, max_new_tokens=8, seeds=2)
    log_probs, mask = token_log_probs(model, collate(made, pad_id=0))
    for row, there, item in zip(log_probs, mask, made, strict=True):
        ids = torch.tensor([[*item.prompt_ids, *item.completion_ids]])
        with torch.no_grad():
            log_p = model.model(input_ids=ids).logits[0, len(item.prompt_ids) - 1 : -1]
        picked = log_p.log_softmax(-1)[range(len(item.completion_ids)), list(item.completion_ids)]
        torch.testing.assert_close(row[there], picked)


def test_reference_generates_as_the_base_model_does():
    base = language_model(dtype=torch.float32)
    policy = language_model(dtype=torch.float32, lora=LoraSettings(rank=2))
    with torch.no_grad():
        for parameter in policy.trainable_parameters():
            parameter.add_(0.2)
    expected = generate(base, PROMPTS, max_new_tokens=6)
    assert generate(reference_of(policy), PROMPTS, max_new_tokens=6) == expected
    assert generate(policy, PROMPTS, max_new_tokens=6) != expected


def test_tokens_are_told_as_they_come():
    model = language_model()
    heard: dict[int, list[int]] = {}
    made = generate(
        model,
        PROMPTS,
        max_new_tokens=5,
        batch_size=2,
        on_token=lambda row, token: heard.setdefault(row, []).append(token),
    )
    assert [tuple(heard[row]) for row in range(len(PROMPTS))] == [c.completion_ids for c in made]


def test_choice_is_the_inverse_of_the_distribution_function():
    logits = torch.tensor([[0.0, 1.0, -torch.inf, 2.0, 0.5]]).log_softmax(-1)
    grid = (torch.arange(10000, dtype=torch.float64) + 0.5) / 10000
    chosen = choose(logits.expand(10000, 5), grid)
    assert (chosen.diff() >= 0).all()
    shares = chosen.bincount(minlength=5) / 10000
    torch.testing.assert_close(shares, logits.exp()[0], atol=2e-4, rtol=0)
    assert shares[2] == 0


def test_the_ends_of_the_unit_interval_choose_possible_tokens():
    logits = torch.tensor([[-torch.inf, 0.3, 0.1, -torch.inf]])
    last = np.nextafter(1.0, 0.0)
    ends = torch.tensor([0.0, last], dtype=torch.float64)
    assert choose(logits.expand(2, 4), ends).tolist() == [1, 2]


def test_cutting_off_the_tail():
    logits = torch.tensor([0.4, 0.3, 0.2, 0.1]).log()[[2, 0, 3, 1]].expand(1000, 4)
    grid = (torch.arange(1000, dtype=torch.float64) + 0.5) / 1000

    def support(**settings: float) -> list[int]:
        return choose(logits, grid, **settings).unique().tolist()

    assert support() == [0, 1, 2, 3]
    assert support(top_k=2) == [1, 3]
    assert support(top_k=9) == [0, 1, 2, 3]
    # 0.4 + 0.3 is the first sum to reach 0.65.
    assert support(top_p=0.65) == [1, 3]
    assert support(top_p=0.75) == [0, 1, 3]
    assert support(top_p=1e-9) == [1]
    assert support(top_p=1.0) == [0, 1, 2, 3]
    assert support(temperature=0.0) == [1]
    shares = choose(logits, grid, top_k=2).bincount(minlength=4) / 1000
    torch.testing.assert_close(shares, torch.tensor([0, 4 / 7, 0, 3 / 7]), atol=1e-3, rtol=0)


def test_of_equals_at_the_edge_no_more_than_k_are_kept():
    grid = (torch.arange(100, dtype=torch.float64) + 0.5) / 100
    logits = torch.tensor([[1.0, 1.0, 0.0, 1.0]]).expand(100, 4)
    assert len(choose(logits, grid, top_k=1).unique()) == 1
    assert len(choose(logits, grid, top_k=2).unique()) == 2


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_logits_that_are_no_numbers_are_told_before_a_token_is_made_of_them(temperature):
    logits = torch.tensor([[0.0, 1.0], [0.0, torch.nan], [torch.inf, 0.0], [-torch.inf] * 2])
    chosen = choose(logits, torch.full((4,), 0.9).double(), temperature=temperature)
    assert chosen.tolist() == [1, 2, 2, 2]
    model = language_model(dtype=torch.float32)
    with torch.no_grad():
        model.head.weight[5] = torch.nan
    with pytest.raises(NonFiniteError, match=r"NaN or infinite after 0 tokens of .* prompts\[0\]"):
        generate(model, PROMPTS[:1], max_new_tokens=4, temperature=temperature)


def test_a_bfloat16_model_samples_from_logits_that_are_not_rounded(monkeypatch):
    model, seen = language_model("llama", dtype=torch.bfloat16), []

    def spy(logits, *arguments, **settings):
        seen.append(logits)
        return choose(logits, *arguments, **settings)

    monkeypatch.setattr(generation, "choose", spy)
    generate(model, PROMPTS[:1], max_new_tokens=2)
    ids = torch.tensor([PROMPTS[0]])
    mask, positions = torch.ones_like(ids).bool(), torch.arange(ids.shape[1])[None]
    hidden = model.hidden_states(ids, mask, positions)[:, -1].float()
    assert seen[0].dtype == torch.float32
    expected = hidden @ model.head.weight.float().T
    torch.testing.assert_close(seen[0], expected, rtol=1e-2, atol=1e-2)
    assert (seen[0].bfloat16().float() != seen[0]).any()


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        ({"max_new_tokens": 0}, "max_new_tokens is 0"),
        ({"temperature": -1.0}, "temperature is -1.0"),
        ({"temperature": float("nan")}, "temperature is nan"),
        ({"top_k": 0}, "top_k is 0"),
        ({"top_p": 0.0}, "top_p is 0.0"),
        ({"top_p": 1.1}, "top_p is 1.1"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"seeds": [1]}, "there are 1 seeds for 2 prompts"),
        ({"seeds": -1}, "seeds are -1; expected integers of at least 0"),
        ({"max_new_tokens": 63}, r"prompts\[1\]: 3 tokens and 63 new ones do not fit"),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings, complaint):
    model = language_model()
    with pytest.raises(UserError, match=complaint):
        generate(model, [[5], [5, 6, 7]], **{"max_new_tokens": 4, **settings})


def test_prompts_that_make_no_sense_are_refused():
    model = language_model()
    with pytest.raises(UserError, match=r"prompts\[1\]: prompt_ids is empty"):
        generate(model, [[5], []], max_new_tokens=4)
    with pytest.raises(UserError, match=r"prompts\[0\]: id 97 is outside the vocabulary of 97"):
        generate(model, [[97]], max_new_tokens=4)
    assert generate(model, [], max_new_tokens=4) == []

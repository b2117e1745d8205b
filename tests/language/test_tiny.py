"""The shipped model is a working one, and the recipe that made it resumes bit for bit."""

import itertools
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import tether.language
from tether.errors import RunError, UserError
from tether.language.data.tokens import Completion, collate
from tether.language.models.language_model import LanguageModel
from tether.language.models.logprobs import token_log_probs
from tether.language.pretraining.learner import Pretraining, PretrainingConfig
from tether.language.pretraining.perplexity import (
    held_out_figures,
    next_token_log_probs,
    windows_of,
)
from tether.language.pretraining.tiny_recipe import export, main, pretrain, train_tokenizer
from tether.language.pretraining.windows import cut_windows
from tether.language.reviews.corpus import Reviews, load_reviews
from tether.learning.callbacks import BaseCallback
from tether.learning.output.metrics import read_metrics
from tether.learning.run import Run

MEASURED = 79.5
TINY = Path(tether.language.__file__).parent / "tiny"

MINIATURE = PretrainingConfig(
    vocabulary=400,
    width=32,
    layers=2,
    heads=2,
    feed_forward=48,
    context=32,
    batch_tokens=256,
    learning_rate=1e-2,
    updates_per_iteration=3,
    evaluate_every=2,
    evaluate_reviews=5,
    precision="float32",
)


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def few():
    """A few short reviews, so that the miniature passes over them more than once."""
    reviews = load_reviews()
    train = [r for r in reviews.train if len(r.text) < 150][:60]
    return Reviews(tuple(train), reviews.held_out[:20], "few")


@pytest.fixture(scope="module")
def tiny():
    return AutoModelForCausalLM.from_pretrained(TINY), AutoTokenizer.from_pretrained(TINY)


class TestShipped:
    def test_is_small_and_whole(self):
        files = {file.name: file.stat().st_size for file in TINY.iterdir()}
        assert {"config.json", "model.safetensors", "tokenizer.json"} <= files.keys()
        assert sum(files.values()) <= 12 * 2**20
        assert not [name for name in files if name.endswith((".bin", ".pt", ".pkl"))]

    def test_loads_as_an_ordinary_model_in_bfloat16(self, tiny):
        model, tokenizer = tiny
        assert model.dtype == torch.bfloat16
        assert model.config.tie_word_embeddings
        assert model.get_input_embeddings().weight is model.lm_head.weight
        assert model.config.vocab_size == len(tokenizer) == 4096
        special = [tokenizer.pad_token_id, tokenizer.bos_token_id, tokenizer.eos_token_id]
        assert len(set(special)) == 3
        config = model.config
        assert special == [config.pad_token_id, config.bos_token_id, config.eos_token_id]

    def test_predicts_reviews_it_has_not_seen(self, tiny):
        model, tokenizer = tiny
        texts = [r.text for r in load_reviews().held_out[:60]]
        figures = held_out_figures(
            model.float(), tokenizer, texts, context=model.config.max_position_embeddings
        )
        assert figures["held_out/perplexity"] < MEASURED * 1.05

    def test_its_card_tells_the_truth(self, tiny):
        model, _ = tiny
        card = json.loads((TINY / "training.json").read_text())
        assert card["parameters"] == sum(p.numel() for p in model.parameters())
        assert card["corpus"] == load_reviews().digest
        assert PretrainingConfig.load(card["config"]).width == model.config.hidden_size

    def test_ends_its_reviews(self, tiny):
        """Where held-out reviews end, the end is many times likelier than elsewhere."""
        model, tokenizer = tiny
        texts = [r.text for r in load_reviews().held_out if len(r.text) < 600][:40]
        at_end, elsewhere = [], []
        for text in texts:
            ids = tokenizer(text, return_tensors="pt")["input_ids"]
            with torch.inference_mode():
                log_probs = model(ids).logits.float().log_softmax(-1)
            end = log_probs[0, :, tokenizer.eos_token_id].exp().tolist()
            at_end.append(end[-1])
            elsewhere += end[:-1]
        assert np.mean(at_end) > 10 * np.mean(elsewhere)

    @pytest.mark.parametrize(
        "text",
        [
            "A film.",
            "  two spaces, a\ttab\nand a line",
            "Žižek's café – “déjà vu” … 5€",
            "映画は素晴らしい 🎬👩‍🚀 עברית",
            "<eos> spelled out? no: <br /> <pad",
            "\x00\x7f\ufeff",
            "",
        ],
    )
    def test_its_tokenizer_loses_nothing(self, tiny, text):
        _, tokenizer = tiny
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        assert tokenizer.decode(ids) == text
        assert tokenizer(text)["input_ids"] == [tokenizer.bos_token_id, *ids]
        assert max(ids, default=0) < 4096


class TestWindows:
    @pytest.mark.parametrize("context", [1, 3, 4, 50])
    @pytest.mark.parametrize("shuffled", [False, True])
    def test_every_token_but_the_first_is_predicted_once(self, context, shuffled):
        documents = [[100 * d + i for i in range(n)] for d, n in enumerate([2, 9, 5, 13, 4], 1)]
        windows = cut_windows(documents, context)
        random = np.random.default_rng(0) if shuffled else None
        pairs = []
        for rows in windows.plan(8, random):
            batch = windows.batch(rows, pad_id=0)
            assert batch.inputs.size <= max(8, context)
            assert batch.inputs.shape[1] <= context
            pairs += zip(batch.inputs[batch.mask], batch.targets[batch.mask], strict=True)
        expected = [pair for d in documents for pair in itertools.pairwise(d)]
        assert sorted(pairs) == expected
        assert windows.tokens == len(expected)

    def test_hardly_anything_is_padding(self):
        reviews = load_reviews().train[:3000]
        windows = cut_windows([[1, *r.text.encode()[:2000], 2] for r in reviews], 256)
        batches = list(windows.batches(4096, 0))
        real = sum(batch.tokens for batch in batches)
        assert real / sum(batch.inputs.size for batch in batches) > 0.97

    def test_mistakes_are_told(self):
        with pytest.raises(UserError, match="at least 2 tokens"):
            cut_windows([[1, 2], [1]], 4)


class TestLogProbs:
    def test_are_those_of_each_window_alone(self, few):
        tokenizer = train_tokenizer([r.text for r in few.train], 400)
        model = Pretraining(
            MINIATURE, tokenizer, few.train, few.held_out, seed=0, total_tokens=1
        ).model
        windows = windows_of([r.text for r in few.train[:12]], tokenizer, 32)
        batch = windows.batch(np.arange(len(windows.starts)), tokenizer.pad_token_id)
        with torch.inference_mode():
            together = next_token_log_probs(model, batch)
            alone = []
            for inputs, targets, mask in zip(batch.inputs, batch.targets, batch.mask, strict=True):
                logits = model(torch.from_numpy(inputs[mask])[None]).logits[0]
                alone.append(logits.log_softmax(-1)[range(mask.sum()), targets[mask]])
        torch.testing.assert_close(together, torch.cat(alone), rtol=1e-5, atol=1e-5)

    def test_are_those_of_the_scorer_that_every_method_uses(self, few):
        tokenizer = train_tokenizer([r.text for r in few.train], 400)
        model = Pretraining(
            MINIATURE, tokenizer, few.train, few.held_out, seed=0, total_tokens=1
        ).model
        documents = [tokenizer(r.text)["input_ids"][:32] for r in few.train[:6]]
        batch = next(cut_windows(documents, 32).batches(10_000, tokenizer.pad_token_id))
        wrapped = LanguageModel(
            model=model,
            tokenizer=tokenizer,
            name="miniature",
            device=torch.device("cpu"),
            dtype=torch.float32,
            pad_id=0,
            eos_id=2,
            context=32,
        )
        rows = [
            [*inputs[mask], targets[mask][-1]]
            for inputs, targets, mask in zip(batch.inputs, batch.targets, batch.mask, strict=True)
        ]
        items = [Completion((int(row[0]),), tuple(map(int, row[1:]))) for row in rows]
        with torch.inference_mode():
            log_probs, mask = token_log_probs(wrapped, collate(items, pad_id=0))
            ours = next_token_log_probs(model, batch)
        torch.testing.assert_close(ours, log_probs[mask], rtol=1e-5, atol=1e-5)

    def test_a_blank_model_knows_no_more_than_the_uniform_one(self, few):
        tokenizer = train_tokenizer([r.text for r in few.train], 400)
        model = Pretraining(
            MINIATURE, tokenizer, few.train, few.held_out, seed=0, total_tokens=1
        ).model
        with torch.no_grad():
            model.lm_head.weight.zero_()
        texts = ["a bc", "é"]
        figures = held_out_figures(model, tokenizer, texts, context=32)
        count = sum(len(tokenizer(t)["input_ids"]) for t in texts)
        nats = count * math.log(400)
        assert figures["held_out/perplexity"] == pytest.approx(400, rel=1e-5)
        assert figures["held_out/word_perplexity"] == pytest.approx(math.exp(nats / 3), rel=1e-5)
        assert figures["held_out/bits_per_byte"] == pytest.approx(nats / math.log(2) / 6, rel=1e-5)


class StopAfter(BaseCallback):
    def __init__(self, iterations):
        self.left = iterations

    def on_iteration(self, run, learner, metrics):
        self.left -= 1
        return self.left > 0


class TestRecipe:
    def test_the_tokenizer_follows_from_the_texts(self, few):
        texts = [r.text for r in few.train]
        both = [train_tokenizer(texts, 400).backend_tokenizer.to_str() for _ in range(2)]
        assert both[0] == both[1]

    @pytest.mark.parametrize("precision", ["float32", "bfloat16"])
    def test_resumes_bit_for_bit(self, few, tmp_path, precision):
        config = MINIATURE.model_copy(update={"precision": precision})

        def learner():
            tokenizer = train_tokenizer([r.text for r in few.train], 400)
            return Pretraining(
                config, tokenizer, few.train, few.held_out, seed=1, total_tokens=12_000
            )

        ends = {}
        for name, stops in {"whole": [], "part": [3, 2, 5]}.items():
            run = Run.create(tmp_path / name, method="pretraining", config={}, spec={})
            for stop in [*stops, 10**9]:
                fresh = learner()
                run = Run.open(run.path)
                run.resume(fresh)
                run.train(fresh, 12_000, callbacks=[StopAfter(stop)], progress=False, sinks=())
            ends[name] = fresh.state(), read_metrics(run.metrics_path)
        (state, metrics), (other, other_metrics) = ends["whole"], ends["part"]
        assert len(metrics) > 10
        assert state["epoch"] >= 1
        assert [without_time(line) for line in metrics] == [
            without_time(line) for line in other_metrics
        ]
        assert_same(state, other)

    def test_goes_on_when_called_again(self, few, tmp_path):
        run = tmp_path / "run"
        first = pretrain(run, config=MINIATURE, total_tokens=2000, reviews=few, progress=False)
        again = pretrain(run, reviews=few, progress=False)
        assert again.steps == first.steps
        assert_same(again.state(), first.state())
        more = pretrain(run, total_tokens=4000, reviews=few, progress=False)
        assert more.steps >= 4000

    def test_learns(self, few, tmp_path):
        learner = pretrain(
            tmp_path / "run", config=MINIATURE, total_tokens=40_000, reviews=few, progress=False
        )
        lines = read_metrics(tmp_path / "run" / "metrics.jsonl")
        ids = learner._windows.ids
        share = np.bincount(ids) / len(ids)
        unigram = -np.sum(share[share > 0] * np.log(share[share > 0]))
        assert lines[0]["loss/nll"] > 5.5
        assert lines[-1]["loss/nll"] < unigram - 0.3, "it learned more than how often tokens occur"
        assert lines[-1]["optimizer/learning_rate"] < lines[10]["optimizer/learning_rate"]
        assert learner.steps >= 40_000

    def test_its_export_is_the_model_it_trained(self, few, tmp_path, capsys):
        run, folder = tmp_path / "run", tmp_path / "model"
        learner = pretrain(run, config=MINIATURE, total_tokens=3000, reviews=few, progress=False)
        card = export(run, folder, reviews=few)
        model = AutoModelForCausalLM.from_pretrained(folder)
        assert model.dtype == torch.bfloat16
        trained = dict(learner.model.named_parameters())
        for name, parameter in model.named_parameters():
            assert torch.equal(parameter, trained[name].to(torch.bfloat16))
        tokenizer = AutoTokenizer.from_pretrained(folder)
        assert tokenizer("déjà vu")["input_ids"] == learner.tokenizer("déjà vu")["input_ids"]
        texts = [r.text for r in few.held_out]
        figures = held_out_figures(model.float(), tokenizer, texts, context=32)
        assert card["held_out/loss"] == pytest.approx(figures["held_out/loss"], rel=1e-6)
        assert card["tokens"] == learner.steps

    def test_mistakes_are_told(self, few, tmp_path, capsys):
        run = tmp_path / "run"
        pretrain(run, config=MINIATURE, total_tokens=1, reviews=few, progress=False)
        with pytest.raises(UserError, match="other settings"):
            pretrain(run, config=PretrainingConfig(), reviews=few)
        with pytest.raises(UserError, match="other reviews"):
            pretrain(run, reviews=load_reviews())
        with pytest.raises(UserError, match="multiple of heads"):
            Pretraining(
                MINIATURE.model_copy(update={"heads": 5}),
                train_tokenizer(["a"], 300),
                few.train,
                few.held_out,
                seed=0,
                total_tokens=1,
            )
        other = Run.create(tmp_path / "other", method="ppo", config={}, spec={})
        other.close()
        with pytest.raises(UserError, match="not of pretraining"):
            export(tmp_path / "other", tmp_path / "model", reviews=few)
        with pytest.raises(RunError, match="no checkpoint"):
            Run.create(tmp_path / "blank", method="pretraining", config={}, spec={}).load()
        assert main([]) == 2
        assert "--out RUN or --export RUN FOLDER" in capsys.readouterr().err
        assert main(["--out", str(tmp_path / "new"), "--total-tokens", "0"]) == 2
        assert "total_tokens is 0" in capsys.readouterr().err


def without_time(line):
    return {key: value for key, value in line.items() if not key.startswith("time/")}


def assert_same(state, other):
    assert state.keys() == other.keys()
    for key, value in state.items():
        if isinstance(value, dict):
            assert_same(value, other[key])
        else:
            np.testing.assert_array_equal(value, other[key], err_msg=key)

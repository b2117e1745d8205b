"""A reward model as a sequence classifier with one label, as `transformers` and TRL read it.

tether's reward is gain (w . h + b) + bias, with h the last hidden state of the last token. The
classifiers of `transformers` compute w' . h without a bias. So w' = gain w, and the constant
c = gain b + bias goes into the bias of the final normalization where it has one (GPT-2, Pythia,
OPT): with c w' / |w'|^2 added to h, every score is c higher. A final RMSNorm (Llama, Qwen) has no
bias; there c stays outside the weights, as ``reward_bias`` in the configuration, for whoever needs
a score's level and not only differences of scores.
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from tether.arguments import say
from tether.errors import UserError
from tether.language.data.tokens import Completion
from tether.language.export.card import write_model_card
from tether.language.export.classifier_card import how_to_score, on_the_constant
from tether.language.export.tokenizer import prepared
from tether.language.models.files import one_line
from tether.language.models.from_run import load_reward_model
from tether.language.models.language_model import DTYPES, LanguageModel, merged
from tether.language.models.reward_model import RewardModel
from tether.learning.run import Run

_CHECKED: Final = 16
_LENGTH: Final = 12


@torch.no_grad()
def write_classifier(run: Run, folder: Path, dtype: str | None) -> dict[str, Any]:
    """Writes a reward run's model as ``AutoModelForSequenceClassification`` reads it.

    Args:
        run: one of reward.
        folder: where to.
        dtype: of the weights; None: float32, the type in which tether reads the head.

    Returns:
        ``reward_bias``, what is to be added to each score, and ``largest_difference`` from
        tether's scores of a few random texts after that addition.

    Raises:
        UserError: an ensemble that is no single model, or an architecture without a classifier.
    """
    reward = load_reward_model(run.path, device="cpu")
    if reward.members > 1 and (reward.adapters or reward.combine != "mean"):
        raise UserError(
            f"run {run.path} holds an ensemble of {reward.members} reward models, which no single "
            "classifier can be; train one with members 1"
        )
    language_model, template = prepared(run, reward.language_model)
    items = _random_completions(language_model)
    expected = reward(items)
    weight, constant = _folded(reward)
    model = _classifier(merged(language_model), run)
    if _add_constant(model, weight, constant):
        constant = 0.0
    _head(model, run).weight.copy_(weight[None])
    tokenizer = language_model.tokenizer
    model.config.pad_token_id = _padding(tokenizer, language_model.stop_ids, model)
    model.config.reward_bias = constant
    tokenizer.padding_side = "right"
    for parameter in model.parameters():
        parameter.data = parameter.data.to(DTYPES[dtype or "float32"])
    difference = float(np.abs(_scores(model, items) + constant - expected).max())
    say(f"its scores of {len(items)} texts differ from tether's by at most {difference:.2g}")
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    write_model_card(
        run,
        folder,
        use=how_to_score(template, constant),
        template=template,
        task="text-classification",
        tags=("reward-model",),
        notes=on_the_constant(constant),
    )
    return {"reward_bias": constant, "largest_difference": difference}


def _folded(reward: RewardModel) -> tuple[Tensor, float]:
    """Weight (H,) and constant of the one linear head that heads, gains and biases make up."""
    gain = torch.tensor(reward.gain)
    heads: list[Any] = list(reward.heads)
    weights = torch.stack([head.weight.double() for head in heads])
    biases = torch.stack([head.bias.double() for head in heads])
    constant = (gain * biases + torch.tensor(reward.bias)).mean()
    return (gain[:, None] * weights).mean(0), float(constant)


def _classifier(trunk: Any, run: Run) -> Any:
    """A sequence classifier around the trunk of a causal language model, in float32."""
    from transformers import AutoModelForSequenceClassification

    config = copy.deepcopy(trunk.config)
    config.num_labels = 1
    config.id2label, config.label2id = {0: "reward"}, {"reward": 0}
    config.problem_type = "regression"
    classes: Any = AutoModelForSequenceClassification
    try:
        model = classes.from_config(config, dtype=torch.float32)
    except ValueError as error:
        raise UserError(
            f"transformers has no sequence classifier for the model of run {run.path} "
            f"({one_line(error)})"
        ) from None
    if type(model.base_model) is not type(trunk.base_model):
        raise _unsuitable(model, run)
    model.base_model.load_state_dict(trunk.base_model.state_dict())
    _head(model, run)
    return model.eval()


def _head(model: Any, run: Run) -> nn.Linear:
    """The one layer that a classifier has beside its trunk."""
    trunk = set(model.base_model.modules())
    others: list[Any] = [m for m in model.modules() if m not in trunk and not list(m.children())]
    if (
        len(others) != 1
        or type(others[0]) is not nn.Linear
        or getattr(others[0], "bias", None) is not None
    ):
        raise _unsuitable(model, run)
    head: nn.Linear = others[0]
    return head


def _unsuitable(model: Any, run: Run) -> UserError:
    return UserError(
        f"the {type(model).__name__} of transformers is not one linear layer on the model of run "
        f"{run.path}, so it cannot hold this reward model"
    )


def _add_constant(model: Any, weight: Tensor, constant: float) -> bool:
    """Adds a constant to every score by the bias of the final normalization, if it has one."""
    given: dict[nn.Module, Tensor] = {}

    def note(module: nn.Module, _: Any, output: Any) -> None:
        given[module] = output

    ids = torch.arange(4)[None]
    hooks = [
        module.register_forward_hook(note)
        for module in model.base_model.modules()
        if isinstance(module, nn.LayerNorm) and module.bias is not None
    ]
    try:
        last = model.base_model(input_ids=ids).last_hidden_state
    finally:
        for hook in hooks:
            hook.remove()
    final: list[Any] = [module for module, output in given.items() if torch.equal(output, last)]
    if len(final) != 1:
        return False
    final[0].bias += (constant * weight / weight.square().sum()).to(final[0].bias)
    return True


def _padding(tokenizer: Any, stop_ids: tuple[int, ...], model: Any) -> int:
    """A padding token that no text ends with, for a classifier reads the last other token.

    Many tokenizers pad with the token that ends an answer, which is just where a reward is read.
    """
    special = [t for t in tokenizer.all_special_tokens if t is not None]
    added = getattr(tokenizer, "added_tokens_decoder", {}).values()
    special += [token.content for token in added if token.special]
    for token in [tokenizer.pad_token, tokenizer.bos_token, tokenizer.unk_token, *special]:
        index = None if token is None else tokenizer.convert_tokens_to_ids(token)
        if index is not None and index not in stop_ids:
            tokenizer.pad_token = token
            return int(index)
    tokenizer.add_special_tokens({"pad_token": "<|pad|>"})
    index = int(tokenizer.pad_token_id)
    if index >= model.get_input_embeddings().weight.shape[0]:
        model.resize_token_embeddings(index + 1, mean_resizing=False)
    return index


def _random_completions(language_model: LanguageModel) -> list[Completion]:
    rng = np.random.default_rng(0)
    tokenizer = language_model.tokenizer
    special = set(tokenizer.all_special_ids)
    usable = [i for i in range(min(language_model.vocabulary, len(tokenizer))) if i not in special]
    longest = min(_LENGTH, language_model.context - 1)
    items = []
    for _ in range(_CHECKED):
        ids = rng.choice(usable, int(rng.integers(2, longest + 1))).tolist()
        items.append(Completion((ids[0],), (*ids[1:], language_model.stop_ids[0])))
    return items


def _scores(model: Any, items: list[Completion]) -> NDArray[np.float64]:
    """The classifier's own scores of texts side by side, filled up on the right."""
    rows = [(*item.prompt_ids, *item.completion_ids) for item in items]
    width, padding = max(map(len, rows)), model.config.pad_token_id
    ids = torch.tensor([[*row, *[padding] * (width - len(row))] for row in rows])
    mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows])
    scores: NDArray[np.float64] = (
        model(input_ids=ids, attention_mask=mask).logits[:, 0].double().numpy()
    )
    return scores

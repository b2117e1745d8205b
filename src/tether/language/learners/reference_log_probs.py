"""What the reference policy thinks of a data set, computed once and kept."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray

from tether.errors import NonFiniteError, RunError
from tether.language.data.tokens import Completion
from tether.language.models.language_model import LanguageModel
from tether.language.runtime.cache import cache_folder
from tether.language.runtime.processes import processes
from tether.language.runtime.state import parameters_digest
from tether.learning.learner import State
from tether.learning.storage.checkpoint import load_checkpoint, save_checkpoint

Groups = Sequence[Sequence[Completion]]

# What a model's configuration says about its file rather than about its function.
_OF_NO_ACCOUNT: Final = frozenset(
    {"_name_or_path", "architectures", "dtype", "torch_dtype", "transformers_version", "use_cache"}
)


class ReferenceLogProbs:
    """log ref(y|x) of every completion of a data set, summed over tokens, in nats.

    The values belong to one model and one list of token ids, and so to one tokenizer and template:
    `key` is a digest of all of them, under which they are also kept for other runs if asked.

    Attributes:
        groups: the completions of each record; as many for every record.
        key: digest of the reference policy and of the completions' tokens.
    """

    def __init__(self, groups: Groups, model_key: str, *, keep: bool = False) -> None:
        """Knows nothing yet, unless another run kept it.

        Args:
            groups: the completions of each record.
            model_key: :func:`fingerprint` of the reference policy.
            keep: take values from the user's cache, and put them there once all are known.
        """
        self.groups = groups
        digest = hashlib.sha256(model_key.encode())
        for group in groups:
            for item in group:
                digest.update(repr((item.prompt_ids, item.completion_ids)).encode())
        self.key = digest.hexdigest()
        columns = len(groups[0]) if groups else 0
        self._values = np.full((len(groups), columns), np.nan)
        self._file: Path | None = None
        if keep:
            self._file = cache_folder() / "reference" / f"{self.key}.safetensors"
            # A file that is missing or damaged is written anew.
            with suppress(RunError):
                state: Any = load_checkpoint(self._file)[0]
                self._values = state["values"]

    @property
    def missing(self) -> NDArray[np.int64]:
        """Places of the records whose values are not known yet."""
        return np.flatnonzero(np.isnan(self._values).any(axis=1))

    def get(self, rows: Sequence[int], score: Callable[[Groups], torch.Tensor]) -> torch.Tensor:
        """Values of some records, (B, columns) float64 on the CPU.

        Args:
            rows: their places.
            score: computes log ref(y|x) of groups, (b, columns); asked once for every record.

        Raises:
            NonFiniteError: it is NaN or infinite.
        """
        unknown = [row for row in rows if np.isnan(self._values[row]).any()]
        if unknown:
            found = score([self.groups[row] for row in unknown]).double().cpu().numpy()
            # NaN stands for what is not known yet: such an answer would be asked for for ever.
            if not (finite := np.isfinite(found).all(axis=1)).all():
                bad = [row + 1 for row, good in zip(unknown, finite, strict=True) if not good]
                shown = ", ".join(map(str, bad[:10])) + (", ..." if len(bad) > 10 else "")
                raise NonFiniteError(
                    f"the reference's log-probability became {found[~np.isfinite(found)][0]} for "
                    f"record{'s' if len(bad) > 1 else ''} {shown}; the model is damaged, or too "
                    "large for its dtype: try float32 or bfloat16"
                )
            self._values[unknown] = found
            if self._file is not None and not len(self.missing) and processes().leads:
                self._file.parent.mkdir(parents=True, exist_ok=True)
                save_checkpoint(self._file, {"values": self._values}, {})
        return torch.from_numpy(self._values[list(rows)])

    def state(self) -> State:
        """The values known so far, and whose they are."""
        return {"key": self.key, "values": self._values.copy()}

    def restore(self, state: State) -> None:
        """Undoes :meth:`state`.

        Raises:
            RunError: the values are those of another model or of other data.
        """
        saved: Any = state
        if saved["key"] != self.key:
            raise RunError(
                "the checkpoint's reference log-probabilities belong to another reference model or "
                "to other data; resume with the model, data and template the run began with"
            )
        self._values = np.array(saved["values"], np.float64)


def fingerprint(language_model: LanguageModel) -> str:
    """Digest of a model: of its parameters, without the adapter if it is read so, and settings."""
    read = [
        (name, parameter)
        for name, parameter in language_model.model.named_parameters()
        if not (language_model.adapter_off and ".lora_" in name)
    ]
    about = language_model.causal_lm.config.to_diff_dict()
    settings = {name: value for name, value in about.items() if name not in _OF_NO_ACCOUNT}
    seal = hashlib.sha256(json.dumps(settings, sort_keys=True, default=str).encode())
    seal.update(parameters_digest(read).encode())
    return seal.hexdigest()

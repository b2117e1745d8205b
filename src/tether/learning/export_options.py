"""How a run's model is written for other programs, whatever engine it is of."""

from __future__ import annotations

from typing import Final, Literal

from pydantic import Field

from tether.errors import UserError
from tether.learning.config import Config


class ExportOptions(Config):
    """Settings of an export; each suits some formats only."""

    keep_adapter: bool = False
    """Write a language model's adapter alone, for peft, instead of merging it into the weights."""
    dtype: Literal["float32", "bfloat16", "float16"] | None = None
    """Of a language model's weights. If not given: hf keeps the run's own type (float32 where an
    adapter is merged), and gguf writes float16."""
    episodes: int = Field(20, ge=0)
    """Episodes of a policy's evaluation for its card (hf); 0 leaves out evaluation and film."""

    def check(self, engine: str, to: str) -> None:
        """Raises a UserError if an option is given that this format does nothing with."""
        for name, suits in _SUITS.items():
            value = getattr(self, name)
            if value != type(self).model_fields[name].default and (engine, to) not in suits:
                kinds = " or ".join(f"{kind} with {form}" for kind, form in suits)
                raise UserError(
                    f"{name} is {value!r}, which an export to {to} of a {engine} run does not use; "
                    f"leave it out (it is for {kinds})"
                )


_SUITS: Final = {
    "keep_adapter": (("language", "hf"),),
    "dtype": (("language", "hf"), ("language", "gguf")),
    "episodes": (("control", "hf"),),
}

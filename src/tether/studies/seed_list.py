"""The seeds of a study, as its settings have them: ``0-2`` or ``0,3,7``."""

from __future__ import annotations

from typing import Annotated

from pydantic import AfterValidator

from tether.learning.seeds import parse_seeds


def _checked(text: str) -> str:
    parse_seeds(text, "seeds")
    return text


SeedList = Annotated[str, AfterValidator(_checked)]
"""Seeds as the command line has them; refused unless :func:`parse_seeds` can read them."""

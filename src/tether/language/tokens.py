"""Token ids on their way from data to a model: records, the limits they must fit, and batches."""

from tether.language.batches import (
    PromptAndCompletion,
    Side,
    TokenBatch,
    collate,
    collate_packed,
    collate_shared,
)
from tether.language.limits import Truncation, check_records, truncate
from tether.language.records import (
    Completion,
    Example,
    Ids,
    Judgement,
    Pair,
    Prompt,
    Ranking,
    Record,
    located,
)

__all__ = [
    "Completion",
    "Example",
    "Ids",
    "Judgement",
    "Pair",
    "Prompt",
    "PromptAndCompletion",
    "Ranking",
    "Record",
    "Side",
    "TokenBatch",
    "Truncation",
    "check_records",
    "collate",
    "collate_packed",
    "collate_shared",
    "located",
    "truncate",
]

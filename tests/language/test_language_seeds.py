"""Runs of neighbouring seeds share nothing random; what cannot go on as it began says so."""

import itertools
from types import SimpleNamespace

import numpy as np
import pytest

from tether.errors import UserError
from tether.language.commands import speak as conversing
from tether.language.learners.order import Order
from tether.language.learners.rollout import shuffled
from tether.learning.seeding import Stream


def first_epoch(seed: int, member: int = 0) -> tuple[int, ...]:
    return tuple(Order([1] * 40, 40, seed=seed, member=member).next())


def test_every_seed_and_member_meets_the_rows_in_an_order_of_its_own() -> None:
    orders = {first_epoch(seed, member) for seed in range(20) for member in range(8)}
    assert len(orders) == 20 * 8
    # The old seeds of members, so far apart that only large seeds met them.
    assert first_epoch(1_000_003) != first_epoch(0, member=1)


def test_prompts_and_pretraining_texts_come_in_different_orders() -> None:
    orders = {
        tuple(shuffled(range(40), 40, seed, purpose))
        for seed in range(20)
        for purpose in (Stream.PROMPT_ORDER, Stream.PRETRAINING_ORDER)
    }
    assert len(orders) == 40


def test_answers_of_neighbouring_seeds_have_no_stream_in_common(monkeypatch) -> None:
    given: list[int] = []

    def note(*arguments, seeds, **settings):
        given.extend(seeds)
        return []

    monkeypatch.setattr(conversing, "generate_ids", note)
    model = SimpleNamespace(context=64)
    for seed, turn in itertools.product(range(20), range(5)):
        conversing._speak(model, [3, 4], conversing.SpeechOptions(seed=seed), 4, None, turn)
    assert len(set(given)) == len(given) == 20 * 5 * 4
    with pytest.raises(UserError, match="seed is -1; expected at least 0"):
        conversing._speak(model, [3], conversing.SpeechOptions(seed=-1), 1, None)


def test_an_order_of_other_streams_does_not_go_on() -> None:
    order = Order([1] * 40, 8, seed=3)
    order.next()
    state = order.state()
    following = order.next()
    again = Order([1] * 40, 8, seed=3)
    again.restore(state)
    assert np.array_equal(again.next(), following)
    with pytest.raises(LookupError, match="streams"):
        again.restore({"epoch": 0, "batch": 1})

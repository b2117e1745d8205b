"""Streams of random numbers: functions of seed, purpose and key that never coincide."""

import numpy as np

from tether.learning.seeding import Stream, derived_seed, generator, seed_sequence


def test_a_stream_is_the_one_numpy_spawns() -> None:
    child = np.random.SeedSequence(5).spawn(3)[Stream.ACTING].spawn(8)[7]
    expected = np.random.default_rng(child).random(4)
    assert generator(5, Stream.ACTING, 7).random(4).tolist() == expected.tolist()


def test_seeds_purposes_and_keys_all_make_another_stream() -> None:
    places = [
        (seed, purpose, *key)
        for seed in range(30)
        for purpose in Stream
        for key in ((), (0,), (1,), (0, 0), (0, 1), (1, 0))
    ]
    states = {tuple(seed_sequence(*place).generate_state(4).tolist()) for place in places}
    assert len(states) == len(places)
    assert len({derived_seed(*place) for place in places}) == len(places)


def test_no_two_purposes_have_one_key() -> None:
    assert not [name for name, member in Stream.__members__.items() if member.name != name]

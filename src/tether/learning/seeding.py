"""Everything random comes from one seed, by streams that share nothing.

NumPy's ``SeedSequence`` hashes a seed and a key into the state of a generator. Streams of different
purposes have different keys, so none of them repeats another's numbers, and no stream of seed s is
one of seed s + 1. A stream is a function of its seed and key alone, so nothing has to be remembered
to find it again.

Source:
    O'Neill, "Developing a seed_seq alternative" (2015), which ``numpy.random.SeedSequence`` is.
"""

from __future__ import annotations

from enum import IntEnum
from typing import Final

import numpy as np

VERSION: Final = 1
"""Of the streams below. States of what draws from a seed anew, rather than from a generator that is
saved, hold it, so that nothing goes on from a checkpoint in other streams than it began with."""


class Stream(IntEnum):
    """What random numbers are for. The values are keys: a new purpose takes a new one."""

    # Control.
    WEIGHTS = 0
    MINIBATCHES = 1
    ACTING = 2
    ENVIRONMENTS = 3
    EVALUATION_NOISE = 4
    REWARD_WEIGHTS = 5
    REWARD_BOOTSTRAP = 6
    REWARD_FITTING = 7
    QUERIES = 8
    TEACHER = 9
    # Language.
    ADAPTERS = 10
    HEADS = 11
    DATA_ORDER = 12
    BOOTSTRAP = 13
    NORMALIZATION = 14
    PROMPT_ORDER = 15
    TOKENS = 16
    RLHF_MINIBATCHES = 17
    PRETRAINING_ORDER = 18
    CONVERSATION = 19
    BEST_OF_N = 20
    COMPARED_ANSWERS = 21
    # Studies.
    COMPARED_SAMPLES = 30
    PPO_PROMPTS = 31
    MEASUREMENT = 32
    INTERVALS = 33
    FLIPPED_LABELS = 34
    MEMBERS = 35


def seed_sequence(seed: int, purpose: Stream, *key: int) -> np.random.SeedSequence:
    """The stream of a seed for one purpose.

    It is what ``SeedSequence(seed).spawn(...)`` gives at place `purpose`, spawned on by `key`.

    Args:
        seed: of the run, >= 0.
        purpose: what the numbers are for.
        *key: which of that purpose's streams: an epoch, a member, an episode.
    """
    return np.random.SeedSequence(seed, spawn_key=(int(purpose), *key))


def generator(seed: int, purpose: Stream, *key: int) -> np.random.Generator:
    """A generator at the beginning of :func:`seed_sequence`."""
    return np.random.default_rng(seed_sequence(seed, purpose, *key))


def derived_seed(seed: int, purpose: Stream, *key: int) -> int:
    """A seed in [0, 2^63) for what takes an integer and no ``SeedSequence``."""
    return int(seed_sequence(seed, purpose, *key).generate_state(1, np.uint64)[0] >> np.uint64(1))

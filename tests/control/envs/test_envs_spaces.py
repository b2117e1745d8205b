"""Spaces: what policies see, and their JSON."""

import json

import numpy as np
import pytest
from gymnasium import spaces
from hypothesis import given, settings
from hypothesis import strategies as st

from tether.control.envs.spaces import (
    flatten_observation,
    policy_space,
    space_from_json,
    space_to_json,
)
from tether.errors import BadEnvironmentError, UserError

SHAPES = st.lists(st.integers(1, 4), max_size=3).map(tuple)


@st.composite
def boxes(draw, largest=None):
    shape = draw(SHAPES)
    dtype = draw(st.sampled_from(["float32", "float64", "uint8", "int16", "int64", "uint64"]))
    if dtype.startswith("float"):
        width = int(dtype[-2:])
        ends = {} if largest is None else {"min_value": -largest, "max_value": largest}
        bound = st.floats(allow_nan=False, width=width, **ends)
    else:
        info = np.iinfo(dtype)
        ends = [int(info.min), int(info.max)]
        if largest is not None:
            ends = [max(ends[0], -largest), min(ends[1], largest)]
        bound = st.integers(*ends)
    count = int(np.prod(shape))
    size = draw(st.sampled_from([1, count]))
    pairs = draw(st.lists(st.tuples(bound, bound), min_size=size, max_size=size))
    low, high = (
        np.resize(np.array([f(p) for p in pairs], dtype), shape).astype(dtype) for f in (min, max)
    )
    return spaces.Box(low, high, shape, np.dtype(dtype).type)


@st.composite
def multi_discretes(draw):
    shape = draw(st.lists(st.integers(1, 3), min_size=1, max_size=2))
    count = int(np.prod(shape))
    numbers = st.lists(st.integers(1, 5), min_size=count, max_size=count)
    nvec, start = (np.array(draw(numbers)).reshape(shape) for _ in range(2))
    return spaces.MultiDiscrete(nvec, start=start - 3, dtype=draw(st.sampled_from(INTEGERS)))


INTEGERS = [np.int64, np.int32]
OTHERS = st.one_of(
    multi_discretes(),
    st.builds(
        spaces.Discrete,
        st.integers(1, 6),
        start=st.integers(-5, 5),
        dtype=st.sampled_from(INTEGERS),
    ),
    st.builds(spaces.MultiBinary, st.one_of(st.integers(1, 4), st.just([2, 3]))),
)


def trees(leaves):
    return st.recursive(
        leaves,
        lambda part: st.one_of(
            st.lists(part, min_size=1, max_size=3).map(spaces.Tuple),
            st.dictionaries(st.text(max_size=3), part, min_size=1, max_size=3).map(
                lambda parts: spaces.Dict(list(parts.items()), sort_keys=False)
            ),
        ),
        max_leaves=5,
    )


@given(trees(boxes() | OTHERS))
@settings(max_examples=150, deadline=None)
def test_json_round_trip(space):
    text = json.dumps(space_to_json(space), allow_nan=False)
    back = space_from_json(json.loads(text))
    assert back == space
    if isinstance(space, spaces.Dict):
        assert list(back) == list(space)
        assert [part.dtype for part in back.values()] == [part.dtype for part in space.values()]


# Gymnasium cannot sample between the ends of wide integers, so these boxes are small.
@given(trees(boxes(largest=100) | OTHERS), st.integers(0, 2**31))
@settings(max_examples=150, deadline=None)
def test_flattening_is_gymnasiums_and_fits_the_policy_space(space, seed):
    space.seed(seed)
    observation = space.sample()
    target = policy_space(space)
    flat = flatten_observation(space, observation)
    assert (flat.shape, flat.dtype) == (target.shape, target.dtype)
    expected = np.asarray(spaces.flatten(space, observation)).astype(target.dtype)
    np.testing.assert_array_equal(flat.ravel(), expected)
    if target.dtype == np.uint8:
        assert len(target.shape) == 3
    else:
        assert len(target.shape) == 1


@pytest.mark.parametrize(
    ("source", "shape", "dtype"),
    [
        (spaces.Box(-1, 1, (3,)), (3,), "float32"),
        (spaces.Box(-1, 1, (3,), np.float64), (3,), "float64"),
        (spaces.Box(-1, 1, (2, 3)), (6,), "float32"),
        (spaces.Box(-1, 1, ()), (1,), "float32"),
        (spaces.Box(0, 9, (3,), np.int64), (3,), "float64"),
        (spaces.Box(0, 9, (3,), np.int16), (3,), "float32"),
        (spaces.Box(0, 255, (128,), np.uint8), (128,), "float32"),
        (spaces.Box(0, 255, (8, 7, 3), np.uint8), (8, 7, 3), "uint8"),
        (spaces.Box(0, 255, (8, 7), np.uint8), (8, 7, 1), "uint8"),
        (spaces.Box(0, 1, (8, 7, 3)), (168,), "float32"),
        (spaces.Discrete(5, start=2), (5,), "float32"),
        (spaces.MultiDiscrete([2, 3]), (5,), "float32"),
        (spaces.MultiBinary(4), (4,), "float32"),
        (spaces.Dict(a=spaces.Discrete(2), b=spaces.Box(0, 1, (2,))), (4,), "float32"),
        (spaces.Tuple([spaces.Discrete(2), spaces.Box(0, 1, (2,), np.float64)]), (4,), "float64"),
    ],
)
def test_policy_space(source, shape, dtype):
    target = policy_space(source)
    assert (target.shape, target.dtype) == (shape, np.dtype(dtype))


def test_grey_images_keep_their_pixels_and_one_hots_start_at_start():
    grey = spaces.Box(0, 255, (2, 3), np.uint8)
    pixels = np.arange(6, dtype=np.uint8).reshape(2, 3)
    np.testing.assert_array_equal(flatten_observation(grey, pixels)[..., 0], pixels)
    discrete = spaces.Discrete(3, start=5)
    np.testing.assert_array_equal(flatten_observation(discrete, 7), [0, 0, 1])


def test_flattened_observations_are_new_arrays():
    space = spaces.Box(-1, 1, (2,))
    mine = np.zeros(2, np.float32)
    flatten_observation(space, mine)[0] = 1
    assert mine[0] == 0


@pytest.mark.parametrize(
    ("space", "value", "message"),
    [
        (spaces.Discrete(3, start=1), 0, r"came as 0, outside its space Discrete\(3, start=1\)"),
        (spaces.Discrete(3), 1.0, "dtype float64.*promises integers"),
        (spaces.MultiBinary(2), [0, 2], "outside"),
        (spaces.MultiDiscrete([2, 2]), [0, 2], "outside"),
        (spaces.Dict(a=spaces.Discrete(2)), {"b": 0}, r"came as \['b'\].*promises keys \['a'\]"),
        (spaces.Dict(a=spaces.Discrete(2)), 0, "came as int.*promises keys"),
        (
            spaces.Dict(a=spaces.Tuple([spaces.Box(0, 1, (2,))])),
            {"a": (np.zeros(3),)},
            r"observation\['a'\]\[0\] came with shape \(3,\)",
        ),
        (spaces.Tuple([spaces.Discrete(2)]), (0, 1), "came as 2 parts.*tuple of 1"),
        (spaces.Box(0, 255, (2, 2), np.uint8), np.zeros((2, 2)), "dtype float64.*promises uint8"),
    ],
)
def test_untrue_observations_are_named(space, value, message):
    with pytest.raises(BadEnvironmentError, match=message):
        flatten_observation(space, value)


BOX = {"type": "box", "shape": [2], "dtype": "float32", "low": -1.0, "high": 1.0}
DISCRETE = {"type": "discrete", "n": 3, "start": 0, "dtype": "int64"}
MULTI = {"type": "multi_discrete", "nvec": [2, 3], "start": [0, 0], "dtype": "int64"}


def nested(depth):
    return DISCRETE if depth == 0 else {"type": "tuple", "spaces": [nested(depth - 1)]}


@pytest.mark.parametrize(
    "hostile",
    [
        None,
        [],
        "box",
        {},
        {"type": "pickle"},
        {"type": ["box"]},
        {**BOX, "dtype": "object"},
        {**BOX, "dtype": ["float32"]},
        {**BOX, "dtype": "O,O"},
        {**BOX, "shape": [10**9, 10**9]},
        {**BOX, "shape": [-1]},
        {**BOX, "shape": [True]},
        {**BOX, "shape": [2.0]},
        {**BOX, "shape": [1] * 99},
        {**BOX, "shape": "2"},
        {**BOX, "low": float("nan")},
        {**BOX, "low": float("inf")},
        {**BOX, "low": "nan"},
        {**BOX, "low": None},
        {**BOX, "low": [0.0]},
        {**BOX, "low": [[0.0, 0.0]] * 2},
        {**BOX, "low": 2.0},
        {**BOX, "low": True},
        {**BOX, "high": 10**400},
        {**BOX, "dtype": "uint8", "low": 0, "high": 300},
        {**BOX, "dtype": "uint8", "low": 0, "high": "inf"},
        {**DISCRETE, "n": 0},
        {**DISCRETE, "n": 10**12},
        {**DISCRETE, "n": "3"},
        {**DISCRETE, "start": 10**30},
        {**DISCRETE, "dtype": "float32"},
        {**MULTI, "nvec": []},
        {**MULTI, "nvec": [0, 1]},
        {**MULTI, "nvec": [[2], [3, 4]]},
        {**MULTI, "nvec": [2**62, 2**62]},
        {**MULTI, "start": [0]},
        {"type": "multi_binary", "shape": []},
        {"type": "multi_binary", "shape": 0},
        {"type": "multi_binary", "shape": True},
        {"type": "multi_binary", "shape": [10**9]},
        {"type": "dict", "spaces": {"a": DISCRETE}},
        {"type": "dict", "spaces": [["a", DISCRETE], ["a", DISCRETE]]},
        {"type": "dict", "spaces": [[1, DISCRETE]]},
        {"type": "tuple", "spaces": [{**BOX, "shape": [2**23]}] * 3},
        nested(500),
        {"type": nested(500)},
        {**BOX, "shape": nested(500)},
        {**BOX, "low": [nested(500)] * 2},
        {**BOX, "dtype": nested(500)},
        {**DISCRETE, "n": nested(500)},
        {**MULTI, "nvec": [nested(500)]},
        {"type": "dict", "spaces": [[nested(500), DISCRETE]]},
    ],
)
def test_hostile_json_is_refused_in_one_line(hostile):
    with pytest.raises(UserError) as error:
        space_from_json(hostile)
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 300


def test_what_cannot_be_saved_is_refused():
    with pytest.raises(UserError, match="cannot save space Text"):
        space_to_json(spaces.Text(3))
    with pytest.raises(UserError, match="keys must be strings"):
        space_to_json(spaces.Dict({1: spaces.Discrete(2)}))

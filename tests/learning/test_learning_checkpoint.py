"""One file holds a learner bit for bit, or says that it does not."""

import hashlib
import io
import json
import math
import os
import struct
import tempfile
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from safetensors import safe_open

from tether.errors import DamagedCheckpointError, RunError
from tether.learning import load_checkpoint, save_checkpoint

STATE = {
    "policy": {"mean": [{"weight": np.arange(6.0).reshape(2, 3), "bias": np.zeros(2, np.float32)}]},
    "random": np.random.default_rng(3).bit_generator.state,
    "mask": np.array([True, False]),
    "steps": 12345,
}
INFO = {"steps": 12345, "seconds": 1.5}


def same(a, b) -> bool:
    """Equality down to the bit, the type and the order of keys."""
    if type(a) is not type(b):
        return False
    if isinstance(a, dict):
        return list(a) == list(b) and all(same(a[k], b[k]) for k in a)
    if isinstance(a, list):
        return len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, float):
        return struct.pack("<d", a) == struct.pack("<d", b)
    if isinstance(a, np.ndarray | np.generic):
        return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()
    return a == b


def seal(content: bytes) -> bytes:
    """Gives altered bytes the checksum a hostile author would give them."""
    start = 8 + content[8:].index(b'checksum\\":\\"') + len(b'checksum\\":\\"')
    zeroed = content[:start] + b"0" * 64 + content[start + 64 :]
    return zeroed.replace(b"0" * 64, hashlib.sha256(zeroed).hexdigest().encode(), 1)


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    path = tmp_path / "step.safetensors"
    save_checkpoint(path, STATE, INFO)
    return path


dtypes = st.one_of(
    hnp.scalar_dtypes(),
    hnp.byte_string_dtypes(),
    hnp.unicode_string_dtypes(),
    hnp.array_dtypes(),
    st.sampled_from([np.dtype(np.longdouble), np.dtype(np.clongdouble)]),
)
arrays = dtypes.flatmap(
    lambda dtype: hnp.arrays(dtype, hnp.array_shapes(min_dims=0, min_side=0, max_side=3))
)
scalars = st.one_of(
    st.none(), st.booleans(), st.floats(), st.text(), st.integers(-(2**200), 2**200),
    st.sampled_from([2**10000, -(2**10000), -0.0, math.inf]),
)  # fmt: skip
keys = st.one_of(
    st.text(st.characters(exclude_categories=[])),
    st.sampled_from(["$array", "$dict", "a/b", "", "__metadata__"]),
)
states = st.dictionaries(
    keys,
    st.recursive(
        st.one_of(arrays, scalars),
        lambda inner: st.one_of(
            st.lists(inner, max_size=3), st.dictionaries(keys, inner, max_size=3)
        ),
        max_leaves=8,
    ),
    max_size=4,
)


@settings(max_examples=150, deadline=None)
@given(state=states, info=st.dictionaries(st.text(), scalars, max_size=3))
def test_every_state_comes_back_bit_for_bit(tmp_path_factory, state, info) -> None:
    path = tmp_path_factory.mktemp("state") / "x.safetensors"
    save_checkpoint(path, state, info)
    loaded, loaded_info = load_checkpoint(path)
    assert same(loaded, state)
    assert same(loaded_info, info)


@pytest.mark.parametrize(
    "value",
    [
        np.float64(0.1),
        np.float32(0.1),
        np.bool_(True),
        np.uint64(2**64 - 1),
        np.arange(3, dtype=ml_dtypes.bfloat16),
        np.ones((2, 2), dtype=ml_dtypes.float8_e4m3fn),
        np.array(7, dtype=ml_dtypes.bfloat16),
        np.arange(3, dtype=">i4"),
        np.array(["2026-01-01"], dtype="datetime64[D]"),
        np.zeros((0, 3), np.uint64),
        np.arange(10)[::3],
        np.array([b"abcde", b"\0\1\2\3\4"], dtype="V5"),
        np.array([(1, 2.0)], dtype=[("count", ">i2"), ("value", "f8")])[0],
        float.fromhex("0x1.fffffffffffffp+1023"),
        struct.unpack("<d", bytes.fromhex("010000000000f8ff"))[0],
    ],
)
def test_awkward_leaves_come_back(tmp_path: Path, value) -> None:
    save_checkpoint(tmp_path / "x", {"leaf": value}, {})
    assert same(load_checkpoint(tmp_path / "x")[0]["leaf"], value)


def test_integers_beyond_what_python_prints_come_back(tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "x", {"leaf": -(2**50000)}, {})
    assert load_checkpoint(tmp_path / "x")[0]["leaf"] == -(2**50000)


def test_keys_that_look_alike_stay_apart(tmp_path: Path) -> None:
    one, two, three, four = (np.full(2, float(i)) for i in range(4))
    state = {"a/b": one, "a": {"b": two}, "__metadata__": three, "\ud800": four, "l": [one, two]}
    save_checkpoint(tmp_path / "x", state, {})
    assert same(load_checkpoint(tmp_path / "x")[0], state)


def test_memory_order_comes_back_because_sums_depend_on_it(tmp_path: Path) -> None:
    matrix = np.asfortranarray(np.random.default_rng(0).normal(size=(300, 200)).astype(np.float32))
    assert matrix.sum() != np.ascontiguousarray(matrix).sum()
    save_checkpoint(tmp_path / "x", {"m": matrix}, {})
    loaded = load_checkpoint(tmp_path / "x")[0]["m"]
    assert loaded.sum() == matrix.sum()
    assert loaded.flags.f_contiguous


def test_loaded_arrays_are_writable_and_generators_go_on(saved: Path) -> None:
    state, info = load_checkpoint(saved)
    state["policy"]["mean"][0]["weight"] += 1.0
    assert info == INFO
    old, new = np.random.default_rng(3), np.random.default_rng(99)
    new.bit_generator.state = state["random"]
    assert (old.random(100) == new.random(100)).all()


def test_the_file_is_plain_safetensors_with_names_by_path(saved: Path) -> None:
    with safe_open(saved, framework="np") as file:
        names = sorted(file.keys())
        contents = json.loads(file.metadata()["tether"])
    assert names == ["mask", "policy/mean/0/bias", "policy/mean/0/weight"]
    assert contents["state"]["random"]["state"]["state"] == STATE["random"]["state"]["state"]


def test_equal_states_give_equal_files(saved: Path, tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "again", STATE, INFO)
    assert (tmp_path / "again").read_bytes() == saved.read_bytes()


@pytest.mark.parametrize(
    ("leaf", "expected"),
    [
        (object(), "'a/b' is a builtins.object"),
        ((1, 2), "'a/b' is a builtins.tuple"),
        (np.array([None]), "'a/b' is an array of Python objects"),
        ({1: 2}, "keys must be strings"),
        (b"bytes", "'a/b' is a builtins.bytes"),
        (np.zeros(1, dtype=[(f"field{i}", "f4") for i in range(999)]), "too long a dtype"),
    ],
)
def test_what_a_state_cannot_hold_is_named(tmp_path: Path, leaf, expected: str) -> None:
    with pytest.raises(TypeError, match=expected):
        save_checkpoint(tmp_path / "x", {"a": {"b": leaf}}, {})
    assert not list(tmp_path.iterdir())


def test_a_bottomless_state_is_refused(tmp_path: Path) -> None:
    state: dict = {}
    state["self"] = state
    with pytest.raises(TypeError, match="deeper than 100"):
        save_checkpoint(tmp_path / "x", state, {})


def test_truncation_at_every_byte_is_noticed(saved: Path) -> None:
    content = saved.read_bytes()
    for length in range(len(content)):
        saved.write_bytes(content[:length])
        with pytest.raises(DamagedCheckpointError, match="is damaged"):
            load_checkpoint(saved)
    saved.write_bytes(content)
    assert same(load_checkpoint(saved)[0], STATE)


def test_a_changed_byte_anywhere_is_noticed(saved: Path) -> None:
    content = saved.read_bytes()
    random = np.random.default_rng(0)
    for place in range(len(content)):
        # One flipped bit, and one other byte at random.
        for mask in (1 << int(random.integers(8)), int(random.integers(1, 256))):
            altered = bytearray(content)
            altered[place] ^= mask
            saved.write_bytes(altered)
            with pytest.raises(DamagedCheckpointError):
                load_checkpoint(saved)


def test_bytes_added_at_the_end_are_noticed(saved: Path) -> None:
    with saved.open("ab") as file:
        file.write(b"\0")
    with pytest.raises(DamagedCheckpointError):
        load_checkpoint(saved)


@settings(max_examples=200, deadline=None)
@given(data=st.data())
def test_hostile_bytes_under_a_right_checksum_load_or_are_refused(tmp_path_factory, data) -> None:
    path = tmp_path_factory.mktemp("hostile") / "x.safetensors"
    save_checkpoint(path, STATE | {"text": np.array(["npy"])}, INFO)
    content = bytearray(path.read_bytes())
    after_seal = content.index(b"format")
    for _ in range(data.draw(st.integers(1, 3))):
        place = data.draw(st.integers(after_seal, len(content) - 1))
        content[place] = data.draw(st.integers(0, 255))
    if data.draw(st.booleans()):
        content[:8] = data.draw(st.binary(min_size=8, max_size=8))
    path.write_bytes(seal(bytes(content)))
    try:
        load_checkpoint(path)
    except RunError as error:
        assert "\n" not in str(error)


def forge(path: Path, tree: str, entries: str = "", data: bytes = b"") -> None:
    text = json.dumps('{"checksum":"' + "0" * 64 + '",' + tree[1:])
    header = ('{"__metadata__":{"tether":' + text + "}" + entries + "}").encode()
    header += b" " * (-len(header) % 8)
    path.write_bytes(seal(struct.pack("<Q", len(header)) + header + data))


def pickled() -> bytes:
    """A .npy whose array is a pickle that would make a file."""

    class Trap:
        def __reduce__(self):
            return (os.mkdir, (TRAP,))

    buffer = io.BytesIO()
    np.lib.format.write_array(buffer, np.array([Trap()], dtype=object), allow_pickle=True)
    return buffer.getvalue()


def npy_header(text: bytes) -> bytes:
    """A .npy of version 1 with any header."""
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text


TRAP = str(Path(tempfile.gettempdir()) / "a-checkpoint-ran-code")
GOOD = '{"format":1,"info":{},"state":{"a":{"$array":"a"}}}'
TENSOR = ',"a":{"dtype":"%s","shape":%s,"data_offsets":[0,%d]}'


@pytest.mark.parametrize(
    ("tree", "entries", "data"),
    [
        pytest.param(GOOD, "", b"", id="array missing"),
        pytest.param(GOOD, TENSOR % ("F64", "[1]", 16), b"0" * 16, id="wrong length"),
        pytest.param(GOOD, TENSOR % ("F64", "[-1]", 8), b"0" * 8, id="negative shape"),
        pytest.param(GOOD, TENSOR % ("OBJ", "[1]", 8), b"0" * 8, id="unknown dtype"),
        pytest.param(GOOD, TENSOR % ("U8", f"[{2**62},8]", 8), b"0" * 8, id="overflowing shape"),
        pytest.param(GOOD, TENSOR % ("U8", f"[{2**40}]", 2**40), b"0" * 8, id="a terabyte"),
        pytest.param('{"format":1,"info":{},"state":[]}', "", b"", id="state is a list"),
        pytest.param('{"format":1,"info":3,"state":{}}', "", b"", id="info is a number"),
        pytest.param('{"format":"1","info":{},"state":{}}', "", b"", id="format is text"),
        pytest.param('{"info":{},"state":{}}', "", b"", id="no format"),
        pytest.param(
            '{"format":1,"info":{},"state":' + '{"a":' * 5000 + "1" + "}" * 5001, "", b"",
            id="deep JSON",
        ),
        pytest.param(
            '{"format":1,"info":{},"state":{"a":' + "[" * 150 + "]" * 150 + "}}", "", b"",
            id="150 levels",
        ),
        pytest.param('{"format":1,"info":{},"state":{"a":{"$float":"zz"}}}', "", b"", id="float"),
        pytest.param('{"format":1,"info":{},"state":{"a":{"$int":[]}}}', "", b"", id="int"),
        pytest.param('{"format":1,"info":{},"state":{"$dict":[[1,2]]}}', "", b"", id="dict"),
        pytest.param('{"format":1,"info":{},"state":' + "9" * 5000 + "}", "", b"", id="digits"),
        pytest.param(
            GOOD.replace('"a"}', '"a","dtype":"__loader__"}'),
            TENSOR % ("U8", "[8]", 8), b"0" * 8, id="dtype is any attribute",
        ),
        pytest.param(
            GOOD.replace('"a"}', '"a","npy":true}'),
            TENSOR % ("U8", f"[{len(pickled())}]", len(pickled())), pickled(), id="pickle inside",
        ),
        *(
            pytest.param(
                GOOD.replace('"a"}', '"a","npy":true}'),
                TENSOR % ("U8", f"[{len(npy_header(text))}]", len(npy_header(text))),
                npy_header(text), id=f"array header {text!r}",
            )
            for text in (b"(\n", b"{\0}", b"{'descr':\0(")
        ),
    ],
)  # fmt: skip
def test_hostile_files_are_refused_in_one_line(
    tmp_path: Path, tree: str, entries: str, data: bytes
) -> None:
    forge(tmp_path / "x", tree, entries, data)
    with pytest.raises(DamagedCheckpointError, match=r"malformed|format version") as caught:
        load_checkpoint(tmp_path / "x")
    assert "\n" not in str(caught.value)
    assert not Path(TRAP).exists()


def test_the_forger_can_forge_a_good_file(tmp_path: Path) -> None:
    forge(tmp_path / "x", GOOD, TENSOR % ("U8", "[2]", 2), b"ab")
    assert load_checkpoint(tmp_path / "x")[0]["a"].tobytes() == b"ab"


@pytest.mark.parametrize(
    "content", [b"", b"\0" * 8, b"\xff" * 4096, b"PK\x03\x04" + b"x" * 99, b"{}" * 100]
)
def test_foreign_files_are_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x").write_bytes(content)
    with pytest.raises(DamagedCheckpointError, match="does not begin as a checkpoint"):
        load_checkpoint(tmp_path / "x")


def test_a_newer_format_asks_for_an_upgrade_and_is_not_damage(tmp_path: Path) -> None:
    forge(tmp_path / "x", '{"format":2,"info":{},"state":{}}')
    with pytest.raises(RunError, match=r"format 2, newer than the 1.*upgrade") as caught:
        load_checkpoint(tmp_path / "x")
    assert not isinstance(caught.value, DamagedCheckpointError)


def test_a_missing_file_and_a_folder_are_clear(tmp_path: Path) -> None:
    for path in (tmp_path / "none", tmp_path):
        with pytest.raises(RunError, match="cannot read checkpoint"):
            load_checkpoint(path)


def test_a_full_disk_leaves_the_old_file_and_no_litter(saved: Path) -> None:
    before = saved.read_bytes()
    # Writing to /dev/full fails with ENOSPC, as a full disk does.
    saved.with_name(saved.name + ".tmp").symlink_to("/dev/full")
    with pytest.raises(RunError, match=r"the disk is full.*free some space"):
        save_checkpoint(saved, STATE | {"more": np.zeros(1000)}, INFO)
    assert saved.read_bytes() == before
    assert [entry.name for entry in saved.parent.iterdir()] == [saved.name]


def test_a_folder_that_is_not_there_is_a_run_error(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"cannot write .*No such file"):
        save_checkpoint(tmp_path / "none" / "x", STATE, INFO)

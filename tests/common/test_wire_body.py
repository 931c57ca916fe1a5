"""Bodies: what is written is read, safetensors agrees, and no input is worse than a refusal."""

from __future__ import annotations

import json
import tempfile
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst
from safetensors import numpy as safetensors
from safetensors import safe_open

from fedward.common.errors import LinkError
from fedward.common.wire import body as module
from fedward.common.wire.body import DTYPES, Body, Content, Written, write_body

NAMES = st.text(st.characters(codec="utf-8"), min_size=1, max_size=8).filter(
    lambda name: not name.startswith("__")
)
NUMBERS = st.floats(allow_nan=False, allow_infinity=False)
ARRAYS = st.sampled_from(sorted(DTYPES)).flatmap(
    lambda name: npst.arrays(
        DTYPES[name], npst.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4)
    )
)
CONTENTS = st.builds(
    Content,
    config=st.dictionaries(
        NAMES,
        st.one_of(NAMES, st.integers(-(2**63), 2**63 - 1), NUMBERS, st.booleans()),
        max_size=4,
    ),
    metrics=st.dictionaries(NAMES, NUMBERS, max_size=4),
    arrays=st.dictionaries(NAMES, ARRAYS, max_size=4),
)
EXAMPLE = Content({"server-round": 3, "lr": 0.5}, {"n": 2.0}, {"w": np.ones((2, 3), np.float32)})


def written(content: Content, path: Path) -> tuple[Written, bytes]:
    result = write_body(path, content)
    return result, path.read_bytes()


def opened(data: bytes, folder: Path) -> Content | None:
    """What `Body.open` makes of some bytes: everything in them, or None for a refusal."""
    path = folder / "given"
    path.write_bytes(data)
    try:
        with Body.open(path) as body:
            return body.content()
    except LinkError:
        return None


def crafted(header: object, data: bytes = b"", *, metadata: object = None) -> bytes:
    if isinstance(header, dict):
        records = {"config": {}, "metrics": {}} if metadata is None else metadata
        header = {"__metadata__": {"fedward": json.dumps(records)}, **header}
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


def entry(dtype: str = "F32", shape: object = (1,), offsets: object = (0, 4)) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


@given(CONTENTS)
def test_what_is_written_is_read(content: Content) -> None:
    with tempfile.TemporaryDirectory() as folder:
        result, data = written(content, Path(folder) / "a")
        again = opened(data, Path(folder))
        assert result.size == len(data)
        assert again is not None
        # The same content gives the same bytes: a repeated task has the same key.
        assert written(again, Path(folder) / "b")[1] == data
    assert again.config == content.config
    assert again.metrics == content.metrics
    assert list(again.arrays) == list(content.arrays)
    for name, array in content.arrays.items():
        assert again.arrays[name].dtype == array.dtype
        np.testing.assert_array_equal(again.arrays[name], array)


@given(CONTENTS)
def test_safetensors_opens_ours(content: Content) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = write_body(Path(folder) / "a", content).path
        theirs = safetensors.load_file(path)
        with safe_open(path, framework="np") as file:
            records = json.loads(file.metadata()["fedward"])
    assert set(theirs) == set(content.arrays)
    for name, array in content.arrays.items():
        np.testing.assert_array_equal(theirs[name], array)
    assert records["config"] == content.config


@given(st.dictionaries(NAMES, ARRAYS, max_size=4))
def test_we_open_theirs(arrays: dict[str, Any]) -> None:
    records = json.dumps({"config": {"a": 1}, "metrics": {}})
    data = safetensors.save(
        {k: np.ascontiguousarray(v) for k, v in arrays.items()}, {"fedward": records}
    )
    with tempfile.TemporaryDirectory() as folder:
        content = opened(data, Path(folder))
    assert content is not None
    assert content.config == {"a": 1}
    assert set(content.arrays) == set(arrays)
    for name, array in arrays.items():
        np.testing.assert_array_equal(content.arrays[name].reshape(array.shape), array)


def test_blocks_of_an_array(tmp_path: Path) -> None:
    array = np.arange(10_000, dtype=np.float64).reshape(100, 100)
    big_endian = array.astype(">f8")
    for given_array in (array, big_endian, np.asfortranarray(array)):
        path = write_body(tmp_path / "a", Content(arrays={"x": given_array})).path
        with Body.open(path) as body:
            np.testing.assert_array_equal(body.block("x", 150, 420), np.arange(150.0, 420.0))
            assert body.block("x", 7, 7).size == 0
            np.testing.assert_array_equal(body.array("x"), array)


def test_a_file_that_shrinks_while_it_is_open_is_noticed(tmp_path: Path) -> None:
    path = write_body(tmp_path / "a", EXAMPLE).path
    with Body.open(path) as body:
        path.write_bytes(path.read_bytes()[:-1])
        with pytest.raises(LinkError, match="ends too early"):
            body.array("w")


@pytest.mark.parametrize(
    "content",
    [
        Content(arrays={"w": np.ones(2, np.float16)}),
        Content(arrays={"w": np.array([object()])}),
        Content(arrays={"__metadata__": np.ones(2)}),
        Content(metrics={"loss": float("nan")}),
        Content(metrics={"loss": float("inf")}),
        Content(metrics={"flag": True}),
        Content(config={"x": float("-inf")}),
        Content(config={"x": 1 << 64}),
        Content(config={"x": "\ud800"}),
        Content(config={"x": [1]}),  # type: ignore[dict-item]
        Content(arrays={"\udfff": np.ones(1)}),
        Content(config={"x": "x" * module.LARGEST_HEADER}),
    ],
)
def test_what_would_be_refused_is_not_written(content: Content, tmp_path: Path) -> None:
    with pytest.raises(LinkError):
        write_body(tmp_path / "a", content)
    assert not (tmp_path / "a").exists()


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\0" * 7,
        b"\xff" * 64,
        (1 << 63).to_bytes(8, "little"),
        crafted(b"[]"),
        crafted(b"null"),
        crafted(b"{}"),
        crafted(b"[" * 100_000),
        crafted(b"\xff\xfe"),
        crafted(b'{"__metadata__": {"fedward": 1}}'),
        crafted({"w": entry()}),  # no data
        crafted({"w": entry()}, b"\0" * 5),  # surplus
        crafted({"w": entry(dtype="F16")}, b"\0" * 4),
        crafted({"w": entry(dtype=[])}, b"\0" * 4),  # type: ignore[arg-type]
        crafted({"w": entry(offsets=(0.0, 4.0))}, b"\0" * 4),
        crafted({"w": entry(offsets=(False, 4))}, b"\0" * 4),
        crafted({"w": entry(offsets=(0, 4, 8))}, b"\0" * 4),
        crafted({"w": entry(shape=(1.0,))}, b"\0" * 4),
        crafted({"w": entry(shape=(-1, -1))}, b"\0" * 4),
        crafted({"w": entry(shape=[1] * 9)}, b"\0" * 4),
        crafted({"w": entry(shape=(0, 1 << 62, 1 << 62), offsets=(0, 0))}),
        crafted({"w": entry(shape=(0, 10**30), offsets=(0, 0))}),
        crafted({"w": entry(), "v": entry()}, b"\0" * 4),  # they overlap
        crafted({"w": entry(offsets=(4, 8))}, b"\0" * 8),  # a gap
        crafted({"w": entry("BOOL", (4,))}, b"\0\1\2\0"),
        crafted({}, metadata={"config": {}, "metrics": {"x": True}}),
        crafted({}, metadata={"config": {"x": None}, "metrics": {}}),
        crafted({}, metadata={"config": {"x": 1 << 70}, "metrics": {}}),
        crafted({}, metadata={"config": {}, "metrics": {"x": float("nan")}}),
        crafted({}, metadata={"config": {"x": "\ud800"}, "metrics": {}}),
        crafted(b'{"__metadata__":{"fedward":"{\\"config\\":{},\\"metrics\\":{\\"x\\":1e999}}"}}'),
        crafted(
            b'{"__metadata__":{"fedward":"{\\"config\\":{\\"a\\":1,\\"a\\":2},\\"metrics\\":{}}"}}'
        ),
    ],
)
def test_each_broken_body_is_refused(data: bytes, tmp_path: Path) -> None:
    assert opened(data, tmp_path) is None
    assert opened(crafted({"w": entry()}, b"\0" * 4), tmp_path) is not None


def test_what_is_no_file_is_refused(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "none"):
        with pytest.raises(LinkError):
            Body.open(path)


@given(st.binary(max_size=300))
@example(crafted({"w": entry()}, b"\0" * 4))
def test_any_bytes_are_a_body_or_refused(data: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        opened(data, Path(folder))


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=4),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner, max_size=3)
    ),
    max_leaves=8,
)
ENTRIES = st.fixed_dictionaries(
    {
        "dtype": st.sampled_from(sorted(DTYPES)) | JSON,
        "shape": st.lists(st.integers(0, 3), max_size=3) | JSON,
        "data_offsets": st.tuples(st.integers(0, 8), st.integers(0, 64)) | JSON,
    }
)


@given(st.dictionaries(NAMES, ENTRIES | JSON, max_size=3), JSON, st.binary(max_size=64))
def test_any_header_is_read_or_refused(table: dict[str, Any], records: Any, data: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        opened(crafted(table, data), Path(folder))
        opened(crafted(table, data, metadata={"config": records, "metrics": records}), Path(folder))


@given(st.integers(0, 10**6), st.integers(1, 255), st.integers(0, 10**6))
def test_a_damaged_body_is_read_or_refused(position: int, flip: int, cut: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        _, data = written(EXAMPLE, Path(folder) / "a")
        broken = bytearray(data)
        broken[position % len(data)] ^= flip
        opened(bytes(broken), Path(folder))
        assert opened(data[: cut % len(data)], Path(folder)) is None


@pytest.mark.parametrize(
    "data",
    [
        b"\xff" * 8 + b"\0" * 100,  # announces 2**64 bytes of header
        crafted({"w": entry("F64", (1 << 30,), (0, 8 << 30))}),
        crafted({"w": entry("F64", (1 << 30, 0), (0, 0))}),
        crafted(b"[" + b"0," * 500_000 + b"0]"),
        crafted(b'{"__metadata__":' + b"[{}]" * 200_000),
    ],
)
def test_announced_sizes_are_not_allocated(data: bytes, tmp_path: Path) -> None:
    tracemalloc.start()
    try:
        opened(data, tmp_path)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 16 * len(data) + (1 << 20)

"""JSON on the wire: one meaning on both sides, or a refusal."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedward.common.wire import strict


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"NaN",
        b"-Infinity",
        b"1e999",
        b"18446744073709551616",
        b"1" * 5000,
        b'{"a":1,"a":1}',
        b'"\\ud800"',
        b'{"\\uDFFF":1}',
        b"\xff",
        '"ä"'.encode("utf-16"),
        b"\xef\xbb\xbf1",
        b"[" * 100_000,
        b"{} {}",
    ],
)
def test_refused(data: bytes) -> None:
    with pytest.raises(ValueError, match=r"."):
        strict.loads(data)


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.text(max_size=9)
        | st.floats(allow_nan=False, allow_infinity=False),
        lambda inner: st.lists(inner) | st.dictionaries(st.text(max_size=4), inner),
        max_leaves=12,
    )
)  # fmt: skip
def test_there_and_back(value: object) -> None:
    try:
        data = strict.dumps(value)
    except ValueError:
        pytest.fail("it could be written")
    assert strict.loads(data) == value
    assert strict.dumps(strict.loads(data)) == data


@given(st.binary(max_size=40))
def test_any_bytes_are_read_or_a_value_error(data: bytes) -> None:
    try:
        value = strict.loads(data)
    except ValueError:
        return
    strict.dumps(value)


def test_an_emoji_is_a_whole_pair() -> None:
    assert strict.loads(b'"\\ud83d\\ude00"') == "😀"

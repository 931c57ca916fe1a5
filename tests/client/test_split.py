"""The keyed-hash division: by patient, stable, balanced, and secret without the key."""

from __future__ import annotations

import hashlib
import hmac
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedward.client.split import assign_test

IDS = [f"patient {n}" for n in range(20_000)]


@given(
    st.lists(st.text(), max_size=50),
    st.floats(0.001, 0.999),
    st.binary(max_size=80),
)
def test_follows_its_definition(ids: list[str], holdout: float, key: bytes) -> None:
    """Oracle: exact rational arithmetic on the hexadecimal digest."""
    expected = [
        Fraction(int(hmac.new(key, i.encode("utf-8"), hashlib.sha256).hexdigest(), 16), 2**256)
        < Fraction(holdout)
        for i in ids
    ]
    assert assign_test(ids, holdout, key).tolist() == expected


@pytest.mark.parametrize("holdout", [0.05, 0.25, 0.5, 0.9])
def test_share_is_the_holdout(holdout: float) -> None:
    share = assign_test(IDS, holdout, b"key").mean()
    limit = 4.5 * np.sqrt(holdout * (1 - holdout) / len(IDS))
    assert abs(share - holdout) < limit
    assert abs(share - (holdout + 0.02)) > limit  # another share would be noticed


def test_order_and_company_do_not_matter() -> None:
    every = dict(zip(IDS, assign_test(IDS, 0.3, b"key"), strict=True))
    some = IDS[::-7]
    assert [every[i] for i in some] == assign_test(some, 0.3, b"key").tolist()


def test_a_larger_holdout_keeps_those_already_chosen() -> None:
    small, large = (assign_test(IDS, h, b"key") for h in (0.2, 0.3))
    assert not (small & ~large).any()


def test_keys_choose_independently() -> None:
    one, other = (assign_test(IDS, 0.5, key) for key in (b"one", b"other"))
    agreement = (one == other).mean()
    assert abs(agreement - 0.5) < 4.5 * 0.5 / np.sqrt(len(IDS))


def test_nobody() -> None:
    assert assign_test([], 0.5, b"key").shape == (0,)

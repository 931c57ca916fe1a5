"""Work beside the thread of a run: there, or at once, with the same result."""

from __future__ import annotations

import threading

import pytest

from fedward.server.aside import aside


@pytest.mark.parametrize("worth", [True, False])
def test_the_result_is_the_same(worth: bool) -> None:
    with aside(worth=worth) as other:
        threads = [other.submit(threading.get_ident) for _ in range(3)]
        assert [other.submit(pow, 2, n).result() for n in range(3)] == [1, 2, 4]
    assert all((found.result() != threading.get_ident()) is worth for found in threads)


@pytest.mark.parametrize("worth", [True, False])
def test_what_goes_wrong_is_told(worth: bool) -> None:
    def look() -> None:
        with aside(worth=worth) as other:
            other.submit(int, "nine").result()

    with pytest.raises(ValueError, match="nine"):
        look()


def test_nothing_goes_on_afterwards() -> None:
    done = threading.Event()
    with aside(worth=True) as other:
        other.submit(lambda: threading.Event().wait(0.05))
        other.submit(done.set)
    assert done.is_set()

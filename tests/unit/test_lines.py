"""Lines go by: where they end, how often somebody looks up, and which ids come twice."""

from __future__ import annotations

import io

from hypothesis import given, settings
from hypothesis import strategies as st

from batchpipe.storage import (
    Checkpoint,
    DuplicateFinder,
    read_lines,
)


class TestReadLines:
    def test_only_newlines_end_lines(self) -> None:
        """Carriage returns and Unicode separators are data."""
        text = "a\r\nb\u2028c\u0085d\re\n\nf".encode()
        assert text.split(b"\n") == list(read_lines(io.BytesIO(text)))

    @given(st.binary(), st.integers(1, 9))
    @settings(max_examples=200)
    def test_every_byte_comes_back(self, data: bytes, limit: int) -> None:
        """With a limit in pieces, without one in lines."""
        lines = list(read_lines(io.BytesIO(data)))
        assert (data if data.endswith(b"\n") else data + b"\n") == b"".join(x + b"\n" for x in lines) or not data
        pieces = list(read_lines(io.BytesIO(data), limit))
        assert all(len(piece) <= limit for piece in pieces)
        assert data.replace(b"\n", b"") == b"".join(pieces)


def test_the_pacer_calls_now_and_then() -> None:
    """For small lines at least every 1,024, for large ones about each MB."""
    calls: list[int] = []
    pace = Checkpoint(lambda: calls.append(1))
    for _ in range(2049):
        pace(b"")
    assert len(calls) == 2
    pace(b"x" * (1 << 20))
    assert len(calls) == 3


class TestDuplicateFinder:
    @given(st.lists(st.integers(0, 60), max_size=200), st.integers(1, 20))
    @settings(max_examples=200, deadline=None)
    def test_exactly_the_repeated_ids_are_suspected(self, numbers: list[int], run: int) -> None:
        """However the ids are spread over the runs."""
        with DuplicateFinder(run) as finder:
            for number in numbers:
                finder.note(f"id-{number}")
            expected = {hash(f"id-{number}") for number in numbers if numbers.count(number) > 1}
            assert expected == finder.suspects(lambda: None)

    def test_many_ids_are_compared_run_by_run(self) -> None:
        """Two equal ones among 200,000, far apart."""
        with DuplicateFinder(10_000) as finder:
            for number in range(200_000):
                finder.note(str(number))
            finder.note("17")
            calls: list[int] = []
            assert {hash("17")} == finder.suspects(lambda: calls.append(1))
            assert len(calls) > 10

    def test_the_same_id_over_and_over_does_not_fill_the_memory(self) -> None:
        """Each run holds it once."""
        with DuplicateFinder(1000) as finder:
            for _ in range(100_000):
                finder.note("x")
            assert {hash("x")} == finder.suspects(lambda: None)

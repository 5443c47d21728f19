"""Messages on disk: read back in order, whatever was cut off, by one process at a time."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from feature_repo.errors import StoreError
from ingestion.feed.spill import Spill
from ingestion.topics import Envelope

LIMIT = 64 << 20


def envelope(n: int, size: int = 100) -> Envelope:
    return Envelope("00f1a2b3c4d5e6f7", n, n * 1000, "BTC-USD", "feed", "exchange", b"x" * size)


def numbers(spill: Spill, most: int = 1 << 20) -> list[int]:
    found = []
    while got := spill.read(most):
        found += [e.n for e, _ in got]
    return found


@pytest.fixture
def spill(tmp_path: Path) -> Spill:
    return Spill(tmp_path / "spill", LIMIT, segment_bytes=1000)


def test_what_is_written_is_read_in_order_over_many_segments(spill: Spill) -> None:
    for first in range(0, 100, 5):
        spill.append([envelope(n) for n in range(first, first + 5)])
    assert len(list(spill.folder.glob("*.spill"))) > 5
    assert numbers(spill, 300) == list(range(100))
    assert not spill.pending


def test_reading_and_writing_alternate(spill: Spill) -> None:
    read = []
    for n in range(50):
        spill.append([envelope(n)])
        if n % 7 == 0:
            read += [e.n for e, _ in spill.read(250)]
    assert read + numbers(spill) == list(range(50))


def test_the_envelope_comes_back_whole(spill: Spill) -> None:
    odd = Envelope("s" * 16, 7, 1_700_000_000_123_456_000, "", "state", "advanced", bytes(range(256)))
    spill.append([odd])
    assert spill.read(1)[0][0] == odd


def test_a_message_longer_than_a_segment_is_kept(spill: Spill) -> None:
    spill.append([envelope(1), envelope(2, 6_000_000), envelope(3)])
    assert [len(e.raw) for e, _ in spill.read(1 << 30)] == [100, 6_000_000, 100]


def test_a_restart_reads_what_is_left_before_what_is_new(tmp_path: Path) -> None:
    first = Spill(tmp_path, LIMIT, segment_bytes=1000)
    first.append([envelope(n) for n in range(30)])
    first.close()
    second = Spill(tmp_path, LIMIT, segment_bytes=1000)
    second.append([envelope(n) for n in range(30, 40)])
    assert numbers(second) == list(range(40))


def test_a_record_cut_by_a_kill_ends_its_segment_and_nothing_else(tmp_path: Path) -> None:
    first = Spill(tmp_path, LIMIT)
    first.append([envelope(n) for n in range(10)])
    first.close()
    (segment,) = tmp_path.glob("*.spill")
    with segment.open("r+b") as file:
        file.truncate(segment.stat().st_size - 3)
    second = Spill(tmp_path, LIMIT)
    second.append([envelope(99)])
    assert numbers(second) == [*range(9), 99]
    assert second.damaged == 1


def test_a_flipped_bit_is_never_taken_for_a_message(tmp_path: Path) -> None:
    first = Spill(tmp_path, LIMIT)
    positions = first.append([envelope(n) for n in range(10)])
    first.close()
    (segment,) = tmp_path.glob("*.spill")
    data = bytearray(segment.read_bytes())
    data[positions[4].offset + 20] ^= 1
    segment.write_bytes(data)
    second = Spill(tmp_path, LIMIT)
    assert numbers(second) == list(range(5))
    assert second.damaged == 1


def test_segments_go_when_all_of_them_is_done(spill: Spill) -> None:
    positions = [spill.append([envelope(n)])[0] for n in range(40)]
    before = spill.bytes
    numbers(spill)
    spill.trim(positions[19])
    assert spill.bytes < before
    assert {int(p.stem) for p in spill.folder.glob("*.spill")} >= {positions[20].segment}
    spill.close()
    left = numbers(Spill(spill.folder, LIMIT))
    assert left[-20:] == list(range(20, 40))  # what is done may come again, what isn't always does


def test_clearing_leaves_nothing_and_writing_goes_on(spill: Spill) -> None:
    spill.append([envelope(1)])
    numbers(spill)
    spill.clear()
    assert not list(spill.folder.glob("*.spill"))
    spill.append([envelope(2)])
    assert numbers(spill) == [2]


def test_the_limit_refuses_the_whole_of_what_doesn_t_fit(tmp_path: Path) -> None:
    spill = Spill(tmp_path, 5_000, segment_bytes=1000)
    spill.append([envelope(n) for n in range(20)])
    with pytest.raises(OSError, match="holds"):
        spill.append([envelope(n) for n in range(20, 60)])
    assert numbers(spill) == list(range(20))


def test_half_a_record_on_a_full_disk_is_taken_back(spill: Spill, monkeypatch: pytest.MonkeyPatch) -> None:
    spill.append([envelope(1)])
    real = os.write
    calls = []

    def full(file: int, data: bytes) -> int:
        calls.append(len(data))
        if len(calls) > 1:
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(file, data[: len(data) // 2])

    monkeypatch.setattr("ingestion.feed.spill.os.write", full)
    with pytest.raises(OSError, match="No space"):
        spill.append([envelope(2), envelope(3)])
    monkeypatch.undo()
    spill.append([envelope(4)])
    assert numbers(spill) == [1, 4]


def test_two_processes_never_share_a_folder(spill: Spill) -> None:
    with pytest.raises(StoreError, match="in use by another"):
        Spill(spill.folder, LIMIT)
    spill.close()
    Spill(spill.folder, LIMIT).close()


def test_a_folder_that_can_t_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="file/spill can't be written"):
        Spill(tmp_path / "file" / "spill", LIMIT)

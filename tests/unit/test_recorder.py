"""Tapes of the raw log: what they hold after a kill, a full disk, and a change of tape."""

from __future__ import annotations

import errno
import json
from pathlib import Path

import pytest

from feature_repo.errors import StoreError
from ingestion.feed.recorder import FRAME_BYTES, Recorder
from ingestion.tapes import find_tapes, own_session, read_lines
from ingestion.topics import Envelope, tape_line


def envelope(n: int, size: int = 200) -> Envelope:
    raw = json.dumps({"type": "ticker", "product_id": "BTC-USD", "x": "y" * size}).encode()
    return Envelope("00f1a2b3c4d5e6f7", n, 1_700_000_000_000_000_000 + n * 1000, "BTC-USD", "feed", "exchange", raw)


def content(folder: Path) -> tuple[bytes, list[str]]:
    damage: list[str] = []
    tapes = find_tapes([folder])
    return b"".join(b"".join(read_lines(t, on_damage=damage.append)) for t in tapes), damage


def test_a_tape_holds_the_log_line_by_line(tmp_path: Path) -> None:
    recorder = Recorder(tmp_path, 60)
    log = [envelope(n) for n in range(1, 5001)]
    for at in range(0, len(log), 37):
        recorder.put(log[at : at + 37])
    recorder.close()
    assert content(tmp_path) == (b"".join(map(tape_line, log)), [])
    assert recorder.lines == 5000
    (tape,) = find_tapes([tmp_path])
    assert own_session(tape) == "00f1a2b3c4d5e6f7"


def test_after_a_kill_all_but_the_last_half_second_is_there_and_undamaged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 0.0
    monkeypatch.setattr("ingestion.feed.recorder.time.monotonic", lambda: now)
    recorder = Recorder(tmp_path, 60)
    log = [envelope(n) for n in range(1, 101)]
    for e in log:
        recorder.put([e])
        recorder.poll()
        now += 0.01
    text, damage = content(tmp_path)  # no close: as a kill leaves it
    assert damage == []
    lines = text.splitlines(keepends=True)
    assert lines == [tape_line(e) for e in log[: len(lines)]]
    assert len(lines) >= 50


def test_a_frame_cut_in_the_middle_costs_only_itself(tmp_path: Path) -> None:
    recorder = Recorder(tmp_path, 60)
    for first in (1, 101, 201):
        recorder.put([envelope(n) for n in range(first, first + 100)])
        recorder.flush()
    recorder.close()
    path = recorder.tapes[0]
    path.write_bytes(path.read_bytes()[:-10])
    text, damage = content(tmp_path)
    assert text.startswith(b"".join(tape_line(envelope(n)) for n in range(1, 201)))
    assert len(damage) == 1


def test_much_is_written_before_the_half_second_is_over(tmp_path: Path) -> None:
    recorder = Recorder(tmp_path, 60)
    recorder.put([envelope(1, FRAME_BYTES)])
    assert recorder.lines == 1


def test_tapes_change_with_time_and_their_names_sort(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1_700_000_000.0
    monkeypatch.setattr("ingestion.feed.recorder.time.time", lambda: now)
    recorder = Recorder(tmp_path, 900)
    log = [envelope(n) for n in range(1, 41)]
    for e in log:
        recorder.put([e])
        recorder.flush()
        now += 100
    recorder.close()
    assert len(recorder.tapes) == 5
    assert recorder.tapes == sorted(recorder.tapes)
    assert content(tmp_path)[0] == b"".join(map(tape_line, log))


def test_a_full_disk_is_counted_told_on_the_tape_and_nothing_stops(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recorder = Recorder(tmp_path, 60)
    recorder.put([envelope(1)])
    recorder.flush()

    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("ingestion.feed.recorder.os.write", full)
    for n in (2, 3, 4):
        recorder.put([envelope(n)])
        recorder.flush()
    assert recorder.dropped.count == 3
    monkeypatch.undo()
    recorder.put([envelope(5)])
    recorder.close()
    text, damage = content(tmp_path)
    assert damage == []
    found = [json.loads(line) for line in text.splitlines()]
    assert [(line["n"], line["kind"]) for line in found] == [(1, "feed"), (4, "state"), (5, "feed")]
    assert json.loads(found[1]["raw"])["reason"] == "dropped"
    assert recorder.dropped.count == 3


def test_nothing_received_leaves_no_tape(tmp_path: Path) -> None:
    recorder = Recorder(tmp_path, 60)
    recorder.close()
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_can_t_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="file/raw can't be written"):
        Recorder(tmp_path / "file" / "raw", 60)

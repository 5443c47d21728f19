"""Tapes that are cut, flipped, padded or of another kind: what precedes the damage is used, and the damage is told."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import zstandard

from feature_repo.errors import InputError, StoreError
from infra import cli
from ingestion.market import write_tape
from ingestion.replay import replay
from ingestion.tapes import Tape, own_session, read_lines

LINES = b"".join(b'{"type":"moon","n":%d,"x":"%x"}\n' % (i, i * i * 2654435761) for i in range(20_000))


def zst(data: bytes) -> bytes:
    return zstandard.ZstdCompressor(write_checksum=True).compress(data)


def read(path: Path, content: bytes) -> tuple[bytes, list[str]]:
    path.write_bytes(content)
    damaged: list[str] = []
    return b"".join(read_lines(Tape(path, len(content)), on_damage=damaged.append)), damaged


@pytest.mark.parametrize(("end", "pack"), [("gz", gzip.compress), ("zst", zst)])
class TestCompressed:
    def test_a_cut_file_gives_what_came_before(self, tmp_path: Path, end: str, pack: Callable[[bytes], bytes]) -> None:
        packed = pack(LINES)
        found, damaged = read(tmp_path / f"a.ndjson.{end}", packed[: len(packed) // 2])
        assert len(found) > len(LINES) // 4
        assert LINES.startswith(found)
        assert damaged == [f"a.ndjson.{end}: the compressed file ends early"]

    def test_members_and_padding_are_one_file(self, tmp_path: Path, end: str, pack: Callable[[bytes], bytes]) -> None:
        assert read(tmp_path / f"a.ndjson.{end}", pack(LINES) + pack(LINES) + bytes(9)) == (LINES * 2, [])

    def test_a_wrong_checksum_is_told(self, tmp_path: Path, end: str, pack: Callable[[bytes], bytes]) -> None:
        packed = bytearray(pack(LINES))
        packed[-6 if end == "gz" else -1] ^= 4
        found, damaged = read(tmp_path / f"a.ndjson.{end}", bytes(packed))
        assert len(found) > len(LINES) // 2
        assert LINES.startswith(found)
        assert len(damaged) == 1


@pytest.mark.parametrize("end", ["gz", "zst"])
def test_a_file_that_is_not_compressed_is_told(tmp_path: Path, end: str) -> None:
    found, damaged = read(tmp_path / f"a.ndjson.{end}", LINES)
    assert found == b""
    assert len(damaged) == 1


@pytest.mark.parametrize("content", [b"", b"\n \n", b"no json\n", "{}\n".encode("utf-16"), bytes(1000)])
@pytest.mark.usefixtures("data_dir")
def test_a_tape_without_a_message_is_refused(tmp_path: Path, content: bytes) -> None:
    tape = tmp_path / "a.ndjson"
    tape.write_bytes(content)
    with pytest.raises(InputError, match="no message in it"):
        replay([tape], out=tmp_path / "tables")


@pytest.mark.parametrize("session", ["../../x", "a/b", "", ".", "x" * 65])
def test_a_session_that_cannot_name_a_file_is_refused(tmp_path: Path, session: str) -> None:
    tape = tmp_path / "a.ndjson"
    tape.write_text(f'{{"session":"{session}","n":1,"raw":"{{}}"}}\n')
    with pytest.raises(InputError, match="session is"):
        own_session(Tape(tape, 1))


@pytest.mark.parametrize(("end", "pack"), [("gz", gzip.compress), ("zst", zst)])
def test_a_file_cut_in_its_header_is_told(tmp_path: Path, end: str, pack: Callable[[bytes], bytes]) -> None:
    assert read(tmp_path / f"a.ndjson.{end}", pack(LINES)[:3]) == (
        b"",
        [f"a.ndjson.{end}: the compressed file ends early"],
    )


def test_rejected_messages_that_cannot_be_kept_stop_the_replay(tmp_path: Path, data_dir: Path) -> None:
    (data_dir / "dead_letters").write_text("in the way")
    tape = tmp_path / "a.ndjson"
    tape.write_bytes(b"no json\n")
    with pytest.raises(StoreError, match="rejected messages can't be kept"):
        replay([tape], out=tmp_path / "tables")


def test_a_shell_may_spread_raw_over_many_tapes(data_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    paths = [data_dir / f"{name}.ndjson" for name in "ab"]
    for seed, path in enumerate(paths):
        write_tape(path, seed=seed, seconds=5)
    with pytest.raises(SystemExit) as stop:
        cli.main(["replay", "--raw", *map(str, paths), "--json"])
    assert stop.value.code == 0
    assert json.loads(capsys.readouterr().out)["tapes"] == [str(path) for path in paths]

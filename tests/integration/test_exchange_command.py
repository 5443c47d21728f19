"""``volspike exchange`` as a process: found by its entry, ended by a signal, its ledger readable after a kill."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from infra import services
from infra.services import Service
from infra.settings import ROOT
from ingestion.exchange import read_ledger
from tests.exchange_kit import listening, run, until


@contextmanager
def command(data: Path, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        [sys.executable, "-m", "infra.cli", "exchange", "--port", "0", *arguments],
        cwd=ROOT,
        env={**os.environ, "VOLSPIKE_DATA": str(data)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


async def found(data: Path, process: subprocess.Popen[str]) -> Service:
    await until(lambda: bool(services.running(data / "run", "exchange")) or process.poll() is not None)
    return services.running(data / "run", "exchange")[0]


@pytest.mark.parametrize("ends", ["by itself", "SIGINT", "SIGTERM"])
def test_command_serves_and_sums_up(tmp_path: Path, ends: str) -> None:
    async def work() -> None:
        ledger = tmp_path / "sent.ndjson"
        length = ["--seconds", "15"] if ends == "by itself" else []
        options = ["--speed", "200", "--products", "BTC-USD", "--ledger", str(ledger), "--json", *length]
        with command(tmp_path, *options) as process:
            service = await found(tmp_path, process)
            assert service.pid == process.pid
            async with listening(f"ws://{service.address}") as client:
                await client.subscribe(["BTC-USD"])
                if ends != "by itself":
                    await client.wait(lambda c: len(c.frames) > 50)
                    process.send_signal(getattr(signal, ends))
                await client.wait(lambda c: c.closed is not None)
                assert client.closed == 1001
            out, err = await asyncio.to_thread(process.communicate, timeout=20)
            assert process.returncode == 0, err
            summary = json.loads(out)
            assert summary["sent"] == len(client.frames) > 50 and summary["connections"] == 1
            assert service.address in err and "generated market" in err and "\r" not in err
            assert not services.running(tmp_path / "run", "exchange")
            sent = [e.crc for e in read_ledger(ledger) if e.sent]
            assert sent == [zlib.crc32(frame) for frame in client.frames]

    run(work)


def test_killed_exchange_leaves_a_ledger_of_all_but_the_last_moments(tmp_path: Path) -> None:
    async def work() -> None:
        ledger = tmp_path / "sent.ndjson"
        with command(tmp_path, "--speed", "100", "--ledger", str(ledger)) as process:
            service = await found(tmp_path, process)
            async with listening(f"ws://{service.address}") as client:
                await client.subscribe(["BTC-USD", "ETH-USD"])
                await client.wait(lambda c: len(c.frames) > 1_000)
                process.kill()
                await client.wait(lambda c: c.closed is not None)
        sent = [e for e in read_ledger(ledger) if e.sent]
        got = [zlib.crc32(frame) for frame in client.frames]
        common = min(len(sent), len(got))
        assert [e.crc for e in sent][:common] == got[:common]
        assert client.received_ns[-1] - sent[-1].time_ns < 1_000_000_000

    run(work)


@pytest.mark.parametrize(
    ("options", "code", "said"),
    [
        (["--speed", "0"], 2, "speed must be"),
        (["--faults", "rain=1"], 2, "isn't understood"),
        (["--times", "sideways"], 2, "shift or squeeze"),
        (["--feed", "nowhere.ndjson"], 1, "does not exist"),
        (["--products", "DOGE-USD"], 2, "products must be"),
        (["--ledger", "/proc/nowhere/sent.ndjson"], 1, "can't be written"),
    ],
)
def test_wrong_call_is_explained(
    data_dir: Path, options: list[str], code: int, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    from infra import cli

    with pytest.raises(SystemExit) as ended:
        cli.main(["exchange", "--port", "0", *options])
    assert ended.value.code == code
    assert said in capsys.readouterr().err

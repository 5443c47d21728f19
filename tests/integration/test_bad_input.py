"""What a user gets who asks for the impossible: exit code 1, one line that says what to do, within ten seconds."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import NamedTuple

import pytest

from infra.broker import EmbeddedKafka
from infra.settings import ROOT, child_environment
from ingestion import cluster
from ingestion.exchange import Synthetic
from ingestion.topics import TOPICS
from tests import live_kit
from tests.conftest import free_port, until
from tests.feed_server import feed_server, plays
from tests.ingest_kit import exchange, log_of, serving

pytestmark = pytest.mark.slow

LIMIT_S = 10.0
PRODUCTS = "BTC-USD,ETH-USD"


class Said(NamedTuple):
    """How a command ended."""

    code: int
    message: str
    seconds: float


@pytest.fixture(scope="module")
def start_s() -> float:
    """How long the command itself takes to start here: imports, nothing else."""
    began = time.monotonic()
    subprocess.run(
        [sys.executable, "-c", "import infra.cli, ingestion.feed.pipeline, ingestion.featurize.worker, feast"],
        cwd=ROOT, check=True, timeout=300,
    )  # fmt: skip
    return time.monotonic() - began


def ask(*arguments: str, **environment: str) -> Said:
    """Run a command that can't succeed."""
    began = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-m", "infra.cli", *arguments],
        cwd=ROOT,
        env=child_environment(**environment),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=180,
    )
    assert "Traceback" not in done.stderr, done.stderr
    told = [line for line in done.stderr.splitlines() if line.startswith("volspike: ")]
    told = [line for line in told if "embedded Kafka broker keeps" not in line]
    assert len(told) == 1, done.stderr
    assert not done.stdout
    return Said(done.returncode, told[0], time.monotonic() - began)


def check(said: Said, start_s: float, *words: str, code: int = 1) -> None:
    assert said.code == code, said
    for word in words:
        assert word in said.message, said
    assert said.seconds < live_kit.patience(LIMIT_S) + 2 * start_s, said


@contextmanager
def answering(answer: bytes, context: ssl.SSLContext | None = None) -> Iterator[int]:
    """A server that isn't a WebSocket: it says one thing to whoever connects."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1)
        writer.write(answer)
        writer.close()

    @asynccontextmanager
    async def listening() -> AsyncIterator[int]:
        async with await asyncio.start_server(serve, "127.0.0.1", 0, ssl=context) as server:
            yield server.sockets[0].getsockname()[1]

    with serving(listening()) as port:
        yield port


@pytest.fixture
def certificate(tmp_path: Path) -> ssl.SSLContext:
    """A certificate that nobody trusts."""
    key, cert = tmp_path / "key.pem", tmp_path / "cert.pem"
    command = "openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=localhost -keyout".split()
    subprocess.run([*command, str(key), "-out", str(cert)], check=True, capture_output=True, timeout=60)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(cert, key)
    return context


@pytest.mark.parametrize("url", ["http://127.0.0.1:1/", "127.0.0.1:8765", "ws://"])
def test_what_is_no_websocket_address(data_dir: Path, kafka_embedded: str, start_s: float, url: str) -> None:
    said = ask("ingest", "--feed", url, "--pair", PRODUCTS, VOLSPIKE_KAFKA_SERVERS=kafka_embedded)
    check(said, start_s, url, "ws://", code=said.code if said.code == 2 else 1)


def test_an_address_where_nobody_listens(data_dir: Path, kafka_embedded: str, start_s: float) -> None:
    url = f"ws://127.0.0.1:{free_port()}"
    said = ask("ingest", "--feed", url, "--pair", PRODUCTS, VOLSPIKE_KAFKA_SERVERS=kafka_embedded)
    check(said, start_s, url, "can't be reached", "check address")


def test_a_certificate_that_nobody_trusts(
    data_dir: Path, kafka_embedded: str, start_s: float, certificate: ssl.SSLContext
) -> None:
    with answering(b"", certificate) as port:
        url = f"wss://localhost:{port}"
        said = ask("ingest", "--feed", url, "--pair", PRODUCTS, VOLSPIKE_KAFKA_SERVERS=kafka_embedded)
    check(said, start_s, url, "TLS failed", "untrusted certificate")


def test_tls_where_none_is_spoken(data_dir: Path, kafka_embedded: str, start_s: float) -> None:
    with answering(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n") as port:
        url = f"wss://127.0.0.1:{port}"
        said = ask("ingest", "--feed", url, "--pair", PRODUCTS, VOLSPIKE_KAFKA_SERVERS=kafka_embedded)
    check(said, start_s, url, "TLS")


def test_http_instead_of_a_websocket(data_dir: Path, kafka_embedded: str, start_s: float) -> None:
    with answering(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nhi") as port:
        url = f"ws://127.0.0.1:{port}"
        said = ask("ingest", "--feed", url, "--pair", PRODUCTS, VOLSPIKE_KAFKA_SERVERS=kafka_embedded)
    check(said, start_s, url, "HTTP 200 instead of opening a WebSocket")


def test_an_unknown_pair_and_a_refused_channel(data_dir: Path, kafka_embedded: str, start_s: float) -> None:
    with exchange(Synthetic(seed=7), faults="refuse=level2_batch") as server:
        arguments = ("ingest", "--feed", server.url, "--channels")
        unknown = ask(*arguments, "ticker", "--pair", "NO-PAIR", VOLSPIKE_KAFKA_SERVERS=kafka_embedded)
        refused = ask(*arguments, "level2_batch", "--pair", PRODUCTS, VOLSPIKE_KAFKA_SERVERS=kafka_embedded)
    check(unknown, start_s, "NO-PAIR", "correct --pair")
    check(refused, start_s, "level2_batch", "refused", "--channels")


@pytest.mark.parametrize("command", ["ingest", "featurize"])
def test_a_broker_that_isn_t_there(data_dir: Path, redis_server: str, start_s: float, command: str) -> None:
    address = f"127.0.0.1:{free_port()}"
    said = ask(command, VOLSPIKE_KAFKA_SERVERS=address, VOLSPIKE_REDIS_URL=redis_server)
    check(said, start_s, address, "doesn't answer", "make kafka")


def test_a_redis_that_isn_t_there(data_dir: Path, kafka_embedded: str, start_s: float) -> None:
    address = f"127.0.0.1:{free_port()}"
    said = ask("featurize", VOLSPIKE_KAFKA_SERVERS=kafka_embedded, VOLSPIKE_REDIS_URL=address)
    check(said, start_s, address)


@pytest.mark.parametrize("command", ["ingest", "featurize"])
def test_a_topic_of_too_few_partitions(data_dir: Path, redis_server: str, start_s: float, command: str) -> None:
    with EmbeddedKafka(partitions=2) as broker:
        said = ask(
            command, VOLSPIKE_KAFKA_SERVERS=broker.address, VOLSPIKE_REDIS_URL=redis_server, VOLSPIKE_PARTITIONS="4"
        )
    check(said, start_s, "has 2 partitions", "set VOLSPIKE_PARTITIONS to 2")


@pytest.mark.parametrize("command", ["ingest", "featurize"])
def test_a_data_folder_that_can_t_be_written(
    data_dir: Path, kafka_embedded: str, redis_server: str, start_s: float, command: str
) -> None:
    file = data_dir / "file"
    file.write_text("")
    said = ask(
        command,
        VOLSPIKE_KAFKA_SERVERS=kafka_embedded,
        VOLSPIKE_REDIS_URL=redis_server,
        VOLSPIKE_DATA=str(file / "data"),
    )
    check(said, start_s, str(file), "set VOLSPIKE_")


def test_a_snapshot_of_six_megabytes_comes_through(
    data_dir: Path, tmp_path: Path, kafka_embedded: str, redis_server: str
) -> None:
    sides = {
        side: [[f"{50_000 + sign * (i + 1) / 100:.2f}", "0.12345678"] for i in range(120_000)]
        for side, sign in (("bids", -1), ("asks", 1))
    }
    raw = json.dumps({"type": "snapshot", "product_id": "BTC-USD", **sides}).encode()
    change = json.dumps(
        {
            "type": "l2update", "product_id": "BTC-USD", "changes": [["buy", "49999.99", "2.0"]],
            "time": time.strftime("%Y-%m-%dT%H:%M:%S.000000Z", time.gmtime()),
        }
    ).encode()  # fmt: skip
    assert len(raw) > 6_000_000
    environment = {
        "VOLSPIKE_KAFKA_SERVERS": kafka_embedded, "VOLSPIKE_REDIS_URL": redis_server, "VOLSPIKE_GROUP": "six"
    }  # fmt: skip
    from ingestion import tables

    with feed_server(plays([raw, change])) as server:
        ingest = live_kit.Command(
            tmp_path, "ingest", "--feed", server.url, "--pair", "BTC-USD", "--topic", "six", **environment
        )
        featurize = live_kit.Command(tmp_path, "featurize", "--topic", "six", **environment)
        with ingest, featurize:
            assert until(lambda: bool(tables.last_n("quotes")), 120), ingest.said() + featurize.said()
            assert ingest.end() == 0, ingest.said()
            assert featurize.end() == 0, featurize.said()
    assert any(e.raw == raw for e in log_of(kafka_embedded, "six"))
    quote = tables.scan("quotes").collect().row(-1, named=True)
    assert (quote["bid"], quote["bid_size"], quote["ask"]) == (49_999.99, 2.0, 50_000.01)


def test_the_second_worker_of_a_static_id_stops_the_first_which_says_so(
    data_dir: Path, tmp_path: Path, kafka_real: str, redis_server: str
) -> None:
    cluster.require_topics(kafka_real, TOPICS, 4)
    environment = {
        "VOLSPIKE_KAFKA_SERVERS": kafka_real, "VOLSPIKE_REDIS_URL": redis_server, "VOLSPIKE_GROUP": "twins"
    }  # fmt: skip
    (tmp_path / "two").mkdir()
    first = live_kit.Command(tmp_path, "featurize", "--instance-id", "one", **environment)
    second = live_kit.Command(tmp_path / "two", "featurize", "--instance-id", "one", **environment)

    def reads(command: live_kit.Command) -> Callable[[], bool]:
        return lambda: '"event": "partition"' in command.said()

    with first, second:
        assert until(lambda: reads(first)() or reads(second)(), 120), first.said() + second.said()
        assert until(lambda: not (first.running and second.running), 60), first.said() + second.said()
        fenced, other = (first, second) if not first.running else (second, first)
        told = [line for line in fenced.said().splitlines() if line.startswith("volspike: ")]
        assert len(told) == 1 and "static id" in told[0] and "give each" in told[0], fenced.said()
        assert until(reads(other), 60), other.said()
        assert other.end() == 0, other.said()


def test_a_busy_port_of_the_exchange_is_named(data_dir: Path, start_s: float) -> None:
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        held.listen()
        port = held.getsockname()[1]
        said = ask("exchange", "--port", str(port))
    check(said, start_s, f"port {port}", "--port")


@pytest.mark.parametrize("signal_", [signal.SIGINT, signal.SIGTERM])
def test_a_featurizer_that_has_nothing_to_do_ends_at_once(
    data_dir: Path, tmp_path: Path, kafka_embedded: str, redis_server: str, signal_: signal.Signals
) -> None:
    with live_kit.Command(
        tmp_path, "featurize", "--topic", f"idle-{signal_.name}", VOLSPIKE_KAFKA_SERVERS=kafka_embedded,
        VOLSPIKE_REDIS_URL=redis_server,
    ) as featurize:  # fmt: skip
        assert until(lambda: featurize.said().count('"event": "partition"') == 4, 120), featurize.said()
        began = time.monotonic()
        os.kill(featurize.pid, signal_)
        assert until(lambda: not featurize.running, 30), featurize.said()
        assert time.monotonic() - began < live_kit.patience(5.0)
        assert "0 messages" in featurize.said()
        assert "Traceback" not in featurize.said()

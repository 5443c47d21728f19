"""The writer of the live path against Feast's own store: the same bytes, and no older row over a newer one."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import redis

from feature_repo.contract import FEATURE_NAMES
from feature_repo.errors import ContractError, StoreError
from feature_repo.online_format import TIME_FIELD, decode_timestamp, encode_timestamp, entity_key
from ingestion.kernel import Featurizer, Part
from ingestion.online import OnlineTable
from ingestion.online_command import time_ns
from ingestion.online_writer import OnlineWriter, default_writer
from tests import log_kit
from tests.conftest import free_port

PROJECT = "volspike"


@pytest.fixture
def client(redis_server: str, data_dir: Path, monkeypatch: pytest.MonkeyPatch) -> redis.Redis:
    """Point the settings at an empty Redis."""
    from infra.settings import settings

    monkeypatch.setenv("VOLSPIKE_REDIS_URL", redis_server)
    settings.cache_clear()
    host, port = redis_server.split(":")
    client = redis.Redis(host=host, port=int(port))
    client.flushall()
    return client


@pytest.fixture(scope="module")
def parts() -> list[Part]:
    """Rows of a product one by one: the first with most features missing."""
    kernel = Featurizer()
    log = log_kit.with_keyframes(log_kit.market(3, 40, ("BTC-USD",)))
    made = [part for at in range(len(log)) for part in kernel.push_log(log[at : at + 1]).parts if part.ints.shape[1]]
    assert np.isnan(made[0].numbers[:, -1]).sum() > 40
    return made


def held(client: redis.Redis, product: str = "BTC-USD") -> dict[bytes, bytes]:
    return client.hgetall(entity_key(product, PROJECT))


@pytest.mark.parametrize("which", [0, 5, -1])
def test_bytes_are_those_of_feast(client: redis.Redis, parts: list[Part], which: int) -> None:
    part = parts[which]
    default_writer().write([part])
    ours = held(client)
    assert len(ours) == 1 + len(FEATURE_NAMES)
    client.flushall()
    from ingestion.kernel import LogRows

    OnlineTable().write(LogRows([part]).tables().features)
    assert held(client) == ours


def test_an_older_row_never_replaces_a_newer_one(client: redis.Redis, parts: list[Part]) -> None:
    writer = default_writer()
    writer.write([parts[10]])
    newer = held(client)
    assert writer.write([parts[9]]) == 1
    assert held(client) == newer
    writer.write([parts[11]])
    assert decode_timestamp(held(client)[TIME_FIELD]) == time_ns(parts[11])


def test_of_two_rows_of_one_time_the_first_stays(client: redis.Redis, parts: list[Part]) -> None:
    writer = default_writer()
    writer.write([parts[10]])
    first = held(client)
    writer.write([parts[10]._replace(numbers=parts[10].numbers + 1.0)])
    assert held(client) == first


def test_the_guard_reads_times_that_feast_wrote(client: redis.Redis, parts: list[Part]) -> None:
    from ingestion.kernel import LogRows

    OnlineTable().write(LogRows([parts[10]]).tables().features)
    feast = held(client)
    default_writer().write([parts[9]])
    assert held(client) == feast
    default_writer().write([parts[11]])
    assert held(client) != feast


@pytest.mark.parametrize("ns", [0, 1_000, 999_999_000, 10**9, 127 * 10**9 + 128_000, 1_763_000_000 * 10**9 + 5_000])
def test_times_are_those_of_protobuf(ns: int) -> None:
    from google.protobuf.timestamp_pb2 import Timestamp

    stamp = Timestamp(seconds=ns // 10**9, nanos=ns % 10**9)
    assert encode_timestamp(ns) == stamp.SerializeToString()
    assert decode_timestamp(encode_timestamp(ns)) == ns


def test_rows_are_written_again_where_redis_was_emptied(client: redis.Redis, parts: list[Part]) -> None:
    writer = default_writer()
    writer.write([parts[1]])
    client.flushall()
    writer.write([parts[1]])
    assert held(client)
    client.flushall()
    writer.write([parts[0], parts[2]._replace(product_id="ETH-USD")])
    assert held(client) and held(client, "ETH-USD")


def test_of_two_writers_the_newer_row_stays(client: redis.Redis, parts: list[Part]) -> None:
    """Each has read the time before the other writes: what it watches was changed, so it reads again."""
    one, other = default_writer(), default_writer()
    for writer in (one, other):
        writer.write([parts[0]])
    for at in range(1, 20):
        one.write([parts[2 * at]])
        newest = held(client)
        other.write([parts[2 * at - 1]])
        assert held(client) == newest
        other.write([parts[2 * at + 1], parts[at]._replace(product_id="ETH-USD")])
        assert decode_timestamp(held(client)[TIME_FIELD]) == time_ns(parts[2 * at + 1])
        assert decode_timestamp(held(client, "ETH-USD")[TIME_FIELD]) == time_ns(parts[at])


def test_a_writer_leaves_alone_what_another_took_over(client: redis.Redis, parts: list[Part]) -> None:
    """Watching a row that is another's now would give up each write for ever."""
    products = ["P0-USD", "P1-USD", "P2-USD"]
    old, new = default_writer(), default_writer()
    old.write([parts[0]._replace(product_id=p) for p in products])
    for part in parts[1:12]:
        new.write([part._replace(product_id=p) for p in products[1:]])
        old.write([part._replace(product_id=products[0])])
    before = client.info("commandstats")["cmdstat_exec"]["calls"]
    for part in parts[12:30]:
        new.write([part._replace(product_id=p) for p in products[1:]])
        old.write([part._replace(product_id=products[0])])
    assert client.info("commandstats")["cmdstat_exec"]["calls"] - before == 36


def test_writers_at_once_leave_the_newest(client: redis.Redis, parts: list[Part]) -> None:
    def write(first: int) -> None:
        writer = default_writer()
        for part in parts[first::3]:
            writer.write([part])

    with ThreadPoolExecutor(3) as pool:
        list(pool.map(write, range(3)))
    assert decode_timestamp(held(client)[TIME_FIELD]) == max(map(time_ns, parts))


def test_more_products_than_are_watched(
    client: redis.Redis, parts: list[Part], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ingestion.online_writer.WATCHED", 3)
    writer = default_writer()
    products = [f"P{i}-USD" for i in range(8)]
    for at in (5, 4, 6):
        for first in range(0, 8, 2):
            writer.write([parts[at]._replace(product_id=p) for p in products[first : first + 2]])
    assert {decode_timestamp(held(client, p)[TIME_FIELD]) for p in products} == {time_ns(parts[6])}


@pytest.mark.parametrize("kind", ["damaged time", "no hash"])
def test_a_product_that_cant_be_read_is_told_and_the_others_are_written(
    client: redis.Redis, parts: list[Part], kind: str
) -> None:
    writer, key = default_writer(), entity_key("BTC-USD", PROJECT)
    if kind == "no hash":
        client.set(key, b"x")
    else:
        client.hset(key, TIME_FIELD, b"\xff\xff")
    for part in parts[:2]:
        with pytest.raises(StoreError, match="WRONGTYPE" if kind == "no hash" else "materialize again"):
            writer.write([part, part._replace(product_id="ETH-USD")])
    assert decode_timestamp(held(client, "ETH-USD")[TIME_FIELD]) == time_ns(parts[1])
    client.delete(key)
    writer.write([parts[1]])
    assert decode_timestamp(held(client)[TIME_FIELD]) == time_ns(parts[1])


def test_an_infinite_feature_is_refused_by_name(client: redis.Redis, parts: list[Part]) -> None:
    numbers = parts[3].numbers.copy()
    numbers[FEATURE_NAMES.index("mid"), -1] = np.inf
    with pytest.raises(ContractError, match="mid is infinite"):
        default_writer().write([parts[3]._replace(numbers=numbers)])
    assert not held(client)


def test_a_redis_that_is_not_there_is_named(parts: list[Part]) -> None:
    address = f"127.0.0.1:{free_port()}"
    with pytest.raises(StoreError, match=address):
        OnlineWriter(address, PROJECT).write([parts[0]])

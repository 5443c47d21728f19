"""The writer of the live path against Feast's own store: the same bytes, and no older row over a newer one."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import redis

from feature_repo.contract import FEATURE_NAMES
from feature_repo.errors import ContractError, StoreError
from feature_repo.online_format import TIME_FIELD, decode_timestamp, encode_timestamp, entity_key
from ingestion.kernel import Featurizer, Part
from ingestion.kernel.step import R_TIME_US
from ingestion.online import OnlineTable
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
    assert decode_timestamp(held(client)[TIME_FIELD]) == int(parts[11].ints[R_TIME_US, -1]) * 1000


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


def test_a_redis_that_forgot_its_scripts_is_told_again(client: redis.Redis, parts: list[Part]) -> None:
    writer = default_writer()
    writer.write([parts[0]])
    client.script_flush()
    client.flushall()
    writer.write([parts[1], parts[2]._replace(product_id="ETH-USD")])
    assert held(client) and held(client, "ETH-USD")


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

"""The online reader against Feast itself: same keys, same bytes, same values, whatever PYTHONHASHSEED is."""

from __future__ import annotations

import asyncio
import json
import os
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from feature_repo.contract import FEATURE_NAMES
from feature_repo.errors import StoreError, UsageError
from feature_repo.online_format import decode_timestamp, decode_value, parse_connection
from infra.settings import ROOT
from serving.online import OnlineReader, Row
from tests.contract.serving_kit import expected_probability, some_values, write_artefact, write_row

TIME_NS = 1_700_000_000_123_456_000

# Feast writes and reads in a process of its own: its import warns, and its answers' order depends on the hash seed.
FEAST = """
import json, sys
from datetime import UTC, datetime, timedelta
from feast.infra.online_stores.helpers import get_online_store_from_config
from feast.protos.feast.types.EntityKey_pb2 import EntityKey
from feast.protos.feast.types.Value_pb2 import Value
from feature_repo import contract
from feature_repo.definitions import spike_features
from feature_repo.store import apply
rows = json.load(sys.stdin)
store = apply()
at = datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=TIME_NS // 1000)
def proto(name, value):
    if value is None:
        return Value()
    return Value(int64_val=value) if contract.BY_NAME[name].dtype == "int64" else Value(double_val=value)
data = [
    (EntityKey(join_keys=["product_id"], entity_values=[Value(string_val=product)]),
     {name: proto(name, value) for name, value in values.items()}, at, None)
    for product, values in rows.items()
]
online = get_online_store_from_config(store.config.online_store)
online.online_write_batch(store.config, spike_features, data, None)
read = store.get_online_features(
    features=[f"spike_features:{name}" for name in contract.FEATURE_NAMES],
    entity_rows=[{"product_id": product} for product in rows],
).to_dict()
print(json.dumps({p: {n: read[n][i] for n in contract.FEATURE_NAMES} for i, p in enumerate(rows)}))
""".replace("TIME_NS", str(TIME_NS))

READ = """
import asyncio, json, sys
from pathlib import Path
from serving.online import OnlineReader
from serving.schemas import Model
from serving.backend import names
from serving.scorer import Limits, score
from training.artefact import load
artefact = load(Path(sys.argv[2]))
async def main():
    reader = OnlineReader(sys.argv[1], sys.argv[3])
    read = await reader.read(["BTC-USD"], names(artefact.manifest.features))
    await reader.close()
    return score(read.rows, artefact, Model("volspike", "1"), TIME_NS, Limits(10, 900))
print(json.dumps([a.spike_probability for a in asyncio.run(main())]))
""".replace("TIME_NS", str(TIME_NS))


def run(code: str, *arguments: str, seed: int, **given: Any) -> Any:
    environment = {**os.environ, "PYTHONHASHSEED": str(seed)}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code, *arguments],
        env=environment, cwd=ROOT, capture_output=True, text=True, timeout=180, **given,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout.splitlines()[-1])


def read(address: str, project: str, *products: str, newest: bool = False) -> Any:
    async def once() -> Any:
        reader = OnlineReader(address, project)
        try:
            return await reader.read(products, FEATURE_NAMES, newest=newest)
        finally:
            await reader.close()

    return asyncio.run(once())


def test_reader_and_kit_equal_feast_for_every_feature(
    data_dir: Path, redis_server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    import redis

    monkeypatch.setenv("VOLSPIKE_REDIS_URL", redis_server)
    rows = {f"FEAST{i}-USD": some_values(i) for i in range(3)}
    feast = run(FEAST, seed=1, input=json.dumps(rows))
    found = read(redis_server, "volspike", *rows, "NOT-THERE").rows
    assert found.pop("NOT-THERE") is None
    for product, values in rows.items():
        assert found[product] == Row(product, TIME_NS, values)
        assert dict(found[product].values) == feast[product]
        assert {n: type(v) for n, v in found[product].values.items()} == {n: type(v) for n, v in feast[product].items()}
        # Other tests write through the kit alone, which spares them Feast's import.
        write_row(redis_server, "kit", product, TIME_NS, values)
    with redis.Redis.from_url(f"redis://{redis_server}") as client:
        for product in rows:
            (feasts,) = client.scan_iter(f"*{product}volspike")
            assert client.hgetall(feasts.removesuffix(b"volspike") + b"kit") == client.hgetall(feasts)


def test_probability_is_the_offline_score_whatever_the_hash_seed(tmp_path: Path, redis_server: str) -> None:
    artefact = write_artefact(tmp_path / "model", service="spike_model_v1")
    values = some_values(5)
    write_row(redis_server, "seeds", "BTC-USD", TIME_NS, values)
    expected = expected_probability(artefact, values)
    for seed in (0, 1, 2):
        (got,) = run(READ, redis_server, str(tmp_path / "model"), "seeds", seed=seed)
        assert got == pytest.approx(expected, abs=1e-12)


def test_newest_is_over_all_products_of_the_project_alone(redis_server: str) -> None:
    for i, product in enumerate(("A-USD", "B-USD", "C-USD")):
        write_row(redis_server, "newest", product, TIME_NS + i * 10**9, some_values(i))
    write_row(redis_server, "another", "D-USD", TIME_NS + 99 * 10**9, some_values())
    found = read(redis_server, "newest", "A-USD", newest=True)
    assert found.newest_ns == TIME_NS + 2 * 10**9
    assert list(found.rows) == ["A-USD"]


@pytest.mark.parametrize(
    ("raw", "value"),
    [
        (None, None),
        (b"", None),
        (b"\x68\x00", None),
        (b"\x20\x00", 0),
        (b"\x20" + b"\xff" * 9 + b"\x01", -1),
        (b"\x20\xac\x02", 300),
        (b"\x29" + struct.pack("<d", -0.1), -0.1),
        (b"\x35" + struct.pack("<f", 0.5), 0.5),
    ],
)
def test_values_decode_as_protobuf_has_them(raw: bytes | None, value: float | None) -> None:
    assert decode_value(raw) == value


@pytest.mark.parametrize("raw", [b"\x12\x01a", b"\x29\x00", b"\x20", b"\x20\xff", b"junk"])
def test_damaged_value_is_an_error_and_not_a_number(raw: bytes) -> None:
    with pytest.raises(StoreError):
        decode_value(raw)


@pytest.mark.parametrize("raw", [b"\x08", b"\x1a\x01", b"\x08\xff"])
def test_damaged_time_is_an_error(raw: bytes) -> None:
    with pytest.raises(StoreError):
        decode_timestamp(raw)


def test_connection_string_is_feasts() -> None:
    assert parse_connection("db.example:6380,password=a=b,db=2,ssl=true") == {
        "host": "db.example", "port": 6380, "password": "a=b", "db": 2, "ssl": True,
    }  # fmt: skip


@pytest.mark.parametrize("text", ["", "localhost", "a:1,b:2", "redis://a", "password=x"])
def test_connection_string_without_one_host_and_port_is_refused(text: str) -> None:
    with pytest.raises(UsageError):
        parse_connection(text)

"""Rows in a real Redis: by the hot path, by stock push and by stock materialize, read back by name."""

from __future__ import annotations

import json
import math
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import polars as pl
import pyarrow as pa
import pytest

from feature_repo.contract import FEATURE_NAMES
from feature_repo.errors import ContractError, StoreError
from infra.embedded import EmbeddedRedis
from infra.settings import ROOT, child_environment, settings
from ingestion import online
from tests.feature_rows import START_US, feature_rows, write_table

S = 1_000_000


def free_port() -> int:
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture(scope="module")
def redis(tmp_path_factory) -> Iterator[str]:
    """A server of this module alone: --rebuild deletes what it finds."""
    with EmbeddedRedis(port=free_port(), data=tmp_path_factory.mktemp("online-redis")) as server:
        yield server.address


@pytest.fixture
def table(data_dir, redis, monkeypatch) -> online.OnlineTable:
    """An empty online table and an empty data folder."""
    monkeypatch.setenv("VOLSPIKE_REDIS_URL", redis)
    settings.cache_clear()
    opened = online.OnlineTable()
    opened.clear()
    return opened


def values(row: pa.Table) -> dict[str, object]:
    assert row.num_rows == 1
    return {name: row.column(name).to_pylist()[0] for name in FEATURE_NAMES}


def at(seconds: float) -> datetime:
    return datetime.fromtimestamp(START_US / 1e6, UTC) + timedelta(seconds=seconds)


def test_online_row_equals_row_written_in_every_feature(table):
    rows = pa.concat_tables([feature_rows("BTC-USD", [0, S, 2 * S]), feature_rows("ETH-USD", [0, S // 3], seed=4)])
    assert table.write(rows.take([3, 1, 2, 0, 4])) == 2
    found = table.read(["ETH-USD", "BTC-USD", "DOGE-USD"])
    assert found["BTC-USD"].values == values(rows.slice(2, 1))
    assert found["ETH-USD"].values == values(rows.slice(4, 1))
    assert found["ETH-USD"].row_time == datetime.fromtimestamp(START_US // S, UTC) + timedelta(microseconds=S // 3)
    assert found["DOGE-USD"] is None
    assert None in found["BTC-USD"].values.values() or None in found["ETH-USD"].values.values()


def test_older_and_equal_rows_never_replace_a_newer_one(table):
    newer, older, equal = (feature_rows("BTC-USD", [t], seed=i) for i, t in enumerate([S, 0, S]))
    for rows in (newer, older, equal):
        table.write(rows)
    assert table.read(["BTC-USD"])["BTC-USD"].values == values(newer)


def test_null_takes_the_place_of_an_older_value_and_nan_is_null(table):
    first, second = feature_rows("BTC-USD", [0]), feature_rows("BTC-USD", [S])
    known = first.column("mid").combine_chunks().fill_null(1.0)
    table.write(first.set_column(first.column_names.index("mid"), "mid", known))
    assert table.read(["BTC-USD"])["BTC-USD"].values["mid"] is not None
    table.write(second.set_column(second.column_names.index("mid"), "mid", pa.array([math.nan])))
    assert table.read(["BTC-USD"])["BTC-USD"].values["mid"] is None


def test_infinity_and_missing_columns_are_refused(table):
    rows = feature_rows("BTC-USD", [0])
    with pytest.raises(ContractError, match="infinite"):
        table.write(rows.set_column(rows.column_names.index("mid"), "mid", pa.array([math.inf])))
    with pytest.raises(ContractError, match="w60_ob_ofi"):
        table.write(rows.drop_columns("w60_ob_ofi"))
    assert table.read(["BTC-USD"])["BTC-USD"] is None


def test_materialize_writes_the_newest_row_of_the_table_and_rebuild_starts_anew(table):
    rows = feature_rows("BTC-USD", [0, 5 * S, 3 * S])
    write_table(settings().tables, rows.slice(0, 2), rows.slice(2), feature_rows("ETH-USD", [7]))
    table.write(feature_rows("GONE-USD", [0]))
    assert online.materialize(store=table) == {"BTC-USD": at(5), "ETH-USD": at(7e-6)}
    assert table.read(["BTC-USD"])["BTC-USD"].values == values(rows.slice(1, 1))

    table.write(feature_rows("BTC-USD", [99 * S]))  # stamped in the future: blocks all that follow
    assert online.materialize(store=table)["BTC-USD"] == at(99)
    assert online.materialize(rebuild=True, store=table)["BTC-USD"] == at(5)
    assert table.read(["GONE-USD"])["GONE-USD"] is None
    assert table.read(["BTC-USD"])["BTC-USD"].values == values(rows.slice(1, 1))


def test_rebuild_deletes_nothing_where_there_is_no_table(table):
    table.write(feature_rows("BTC-USD", [0]))
    with pytest.raises(StoreError, match="volspike replay"):
        online.materialize(rebuild=True, store=table)
    assert table.read(["BTC-USD"])["BTC-USD"] is not None


def test_stock_push_and_stock_materialize_meet_the_same_keys_and_table(table):
    from feast.data_source import PushMode

    from feature_repo.store import apply

    store = apply()
    rows = feature_rows("BTC-USD", [0, S, 2 * S])
    write_table(settings().tables, rows.slice(0, 1))

    store.materialize(at(-1), at(10))
    assert table.read(["BTC-USD"])["BTC-USD"].values == values(rows.slice(0, 1))

    pushed = rows.slice(1, 1)
    store.push("spike_push", pushed.to_pandas(), to=PushMode.ONLINE_AND_OFFLINE)
    assert table.read(["BTC-USD"])["BTC-USD"].values == values(pushed)
    lies = pl.read_delta(str(settings().tables / "spike_features")).sort("row_time")
    assert lies.equals(pl.DataFrame(pl.from_arrow(rows.slice(0, 2))))

    table.write(rows.slice(2))  # and what the hot path writes, stock reads
    answer = store.get_online_features(
        store.get_feature_service("spike_full_v1"), [{"product_id": "BTC-USD"}]
    ).to_dict()
    assert {name: answer[name][0] for name in FEATURE_NAMES} == values(rows.slice(2))


def test_redis_down_is_a_store_error_within_seconds(data_dir, monkeypatch):
    address = f"127.0.0.1:{free_port()}"
    monkeypatch.setenv("VOLSPIKE_REDIS_URL", f"{address},password=hunter2")
    settings.cache_clear()
    table = online.OnlineTable()
    for call in (lambda: table.read(["BTC-USD"]), lambda: table.write(feature_rows("BTC-USD", [0])), table.clear):
        start = time.monotonic()
        with pytest.raises(StoreError, match=address) as caught:
            call()
        assert time.monotonic() - start < 2
        assert "hunter2" not in str(caught.value)


_READ = """
import json
from feature_repo.store import store
names = store().get_feature_service("spike_core_v1")
answer = store().get_online_features(names, [{"product_id": "BTC-USD"}]).to_dict()
from ingestion.online import read_online
print(json.dumps([answer, read_online(["BTC-USD"])["BTC-USD"].values]))
"""


def test_reading_by_name_does_not_depend_on_the_hash_seed(table):
    from feature_repo.contract import SERVICES
    from feature_repo.store import apply

    apply()
    rows = feature_rows("BTC-USD", [0])
    table.write(rows)
    want = values(rows)
    reader = subprocess.run(  # under another seed than this process, whose own is drawn at its start
        [sys.executable, "-c", _READ],
        cwd=ROOT,
        env=child_environment(PYTHONHASHSEED="1"),
        capture_output=True,
        text=True,
        timeout=180,
    )
    assert reader.returncode == 0, reader.stderr
    stock, ours = json.loads(reader.stdout)
    assert ours == want
    assert {name: stock[name][0] for name in SERVICES["spike_core_v1"]} == {
        name: want[name] for name in SERVICES["spike_core_v1"]
    }


def test_materialize_command_prints_products_and_times(table, capsys):
    from infra.cli import main

    write_table(settings().tables, feature_rows("BTC-USD", [0, S]))
    with pytest.raises(SystemExit) as ended:
        main(["materialize", "--json"])
    assert ended.value.code == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["products"] == [{"product_id": "BTC-USD", "row_time": at(1).isoformat()}]
    assert answer["redis"] == settings().redis

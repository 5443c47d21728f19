"""get_historical_features and its neighbours through Feast itself, over Delta tables and a parquet file."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from feature_repo.contract import FEATURE_NAMES, SERVICES
from feature_repo.errors import ContractError, InputError, StoreError
from infra.settings import settings
from tests.feature_rows import START_US, feature_rows, write_table
from tests.oracle.asof import naive_asof

TTL_US = 900_000_000
S = 1_000_000


@pytest.fixture(scope="module")
def patch() -> Iterator[pytest.MonkeyPatch]:
    with pytest.MonkeyPatch.context() as context:
        yield context
    settings.cache_clear()


@pytest.fixture(scope="module")
def store(patch, tmp_path_factory):
    """A registered store over two products: ties, duplicates, rows created late, a hole longer than the TTL."""
    patch.setenv("VOLSPIKE_DATA", str(tmp_path_factory.mktemp("offline")))
    settings.cache_clear()
    from feature_repo.store import apply

    opened = apply()
    write_table(settings().tables, *PARTS)
    return opened


def _parts() -> list[pa.Table]:
    rng = np.random.default_rng(5)
    parts = []
    for seed, product in enumerate(["BTC-USD", "ETH-USD"]):
        times = np.sort(rng.integers(0, 60, 200)) * S  # about three rows a time
        times = np.concatenate([times, times[-1] + TTL_US * 2 + np.arange(5)])
        created = times + rng.choice([0, 0, -S, S, 5 * S, 1], times.size)
        order = rng.permutation(times.size)
        for part in np.array_split(order, 3):
            first = len(parts) * 1000
            parts.append(feature_rows(product, times[part], created_us=created[part], first_n=first, seed=seed))
    return parts


PARTS = _parts()
ROWS = pa.concat_tables(PARTS)


def asked_frame(count: int = 600) -> pd.DataFrame:
    """Asked rows on, beside and between row times and TTL edges, shuffled, with duplicates and an unknown product."""
    rng = np.random.default_rng(9)
    own = np.asarray(ROWS.column("row_time").cast(pa.int64()))
    edges = rng.choice([0, 0, 1, -1, S // 2, TTL_US, TTL_US + 1, TTL_US - 1], count)
    times = pd.to_datetime(rng.choice(own, count) + edges, unit="us", utc=True)
    frame = pd.DataFrame(
        {
            "note": [f"row {i}" for i in range(count)],
            "product_id": rng.choice(["BTC-USD", "ETH-USD", "DOGE-USD"], count, p=[0.5, 0.45, 0.05]),
            "event_timestamp": times,
            "big": pd.array([None if i % 7 == 0 else 2**60 + i for i in range(count)], dtype="Int64"),
        }
    )
    return pd.concat([frame, frame.head(50)], ignore_index=True)


def expected(frame: pd.DataFrame, names, *, created_cut: bool = False) -> list[list[object]]:
    """What the naive loop finds, a list of values per asked row."""

    def ns(name):
        return [t * 1000 for t in ROWS.column(name).cast(pa.int64()).to_pylist()]

    moments = pd.to_datetime(frame["event_timestamp"], utc=True).astype("datetime64[ns, UTC]").astype("int64")
    asked = list(zip(frame["product_id"], moments, strict=True))
    rows = list(zip(ROWS.column("product_id").to_pylist(), ns("row_time"), ns("created_timestamp"), strict=True))
    chosen = naive_asof(asked, rows, ttl_ns=TTL_US * 1000, created_cut=created_cut)
    columns = [ROWS.column(name).to_pylist() for name in names]
    return [[None if i is None else column[i] for column in columns] for i in chosen]


def found(table: pa.Table, names) -> list[list[object]]:
    return [list(row) for row in zip(*(table.column(name).to_pylist() for name in names), strict=True)]


@pytest.mark.parametrize("created_cut", [False, True])
def test_all_features_equal_the_naive_loop(store, created_cut):
    frame = asked_frame()
    job = store.get_historical_features(
        frame, store.get_feature_service("spike_full_v1"), filter_by_created_timestamp=created_cut
    )
    table = job.to_arrow()
    assert found(table, FEATURE_NAMES) == expected(frame, FEATURE_NAMES, created_cut=created_cut)
    assert table.column("note").to_pylist() == frame["note"].tolist()
    assert table.column("w30_trade_count").type == pa.int64()  # nulls do not make floats of counts
    assert table.column("w30_trade_count").null_count > 0


def test_to_df_keeps_rows_order_and_extra_columns(store):
    frame = asked_frame(80)
    answer = store.get_historical_features(frame, ["spike_features:mid"]).to_df()
    pd.testing.assert_frame_equal(answer[list(frame.columns)], frame, check_dtype=True)
    values = [None if np.isnan(x) else x for x in answer["mid"]]
    assert values == [row[0] for row in expected(frame, ["mid"])]


@pytest.mark.parametrize("zone", ["Asia/Tokyo", "America/New_York", None])
def test_times_in_any_zone_mean_their_moment(store, zone):
    frame = asked_frame(60)
    times = frame["event_timestamp"].dt.tz_convert(zone) if zone else frame["event_timestamp"].dt.tz_localize(None)
    answer = store.get_historical_features(frame.assign(event_timestamp=times), ["spike_features:mid"]).to_arrow()
    assert found(answer, ["mid"]) == expected(frame, ["mid"])


def test_text_mixed_zones_and_nanoseconds_are_times_too(store):
    moment = pd.Timestamp(START_US, unit="us", tz="UTC")
    frame = asked_frame(40)
    text = frame.assign(event_timestamp=[t.isoformat() for t in frame["event_timestamp"].dt.tz_convert("Asia/Kolkata")])
    answer = store.get_historical_features(text, ["spike_features:mid"]).to_arrow()
    assert found(answer, ["mid"]) == expected(frame, ["mid"])
    # One nanosecond before the first row there is none.
    early = pd.DataFrame({"product_id": ["BTC-USD"] * 2, "event_timestamp": [moment - pd.Timedelta(1), moment]})
    assert START_US in ROWS.column("row_time").cast(pa.int64()).to_pylist()
    answer = store.get_historical_features(early, ["spike_features:day_of_week"]).to_arrow()
    assert [v is None for v in answer.column("day_of_week").to_pylist()] == [True, False]


def test_polars_and_arrow_tables_are_entity_tables_too(store):
    frame = asked_frame(40)
    want = expected(frame, ["mid"])
    table = pa.Table.from_pandas(frame, preserve_index=False)
    for given in (table, pl.DataFrame(pl.from_arrow(table))):
        assert found(store.get_historical_features(given, ["spike_features:mid"]).to_arrow(), ["mid"]) == want


def test_several_views_with_renamed_columns_keys_and_full_names(store, tmp_path):
    from feast import Entity, FeatureView, Field, FileSource, ValueType
    from feast.types import Float64, String

    moment = datetime.fromtimestamp(START_US / 1e6, UTC)
    fees = pa.table(
        {
            "market": ["BTC-USD", "ETH-USD", "BTC-USD"],
            "at": pa.array([moment, moment, moment + timedelta(seconds=30)], pa.timestamp("ns")),  # no zone: UTC
            "bps": [4.0, 6.0, None],
        }
    )
    pq.write_table(fees, tmp_path / "fees.parquet")
    names = {"bps": "mid", "market": "mkt"}
    path = str(tmp_path / "fees.parquet")
    source = FileSource(name="fees", path=path, timestamp_field="at", field_mapping=names)
    market = Entity(name="market", join_keys=["mkt"], value_type=ValueType.STRING)
    view = FeatureView(
        name="fees",
        entities=[market],
        source=source,
        schema=[Field(name="mkt", dtype=String), Field(name="mid", dtype=Float64)],
        ttl=timedelta(0),
    )
    store.apply([market, view])
    frame = pd.DataFrame({"product_id": ["ETH-USD", "BTC-USD", "BTC-USD"], "mkt": ["BTC-USD", "ETH-USD", "BTC-USD"]})
    frame["event_timestamp"] = [moment + timedelta(seconds=s) for s in (29, 40, 40)]
    refs = ["spike_features:mid", "fees:mid"]
    answer = store.get_historical_features(frame, refs, full_feature_names=True).to_arrow()
    assert answer.column("fees__mid").to_pylist() == [4.0, 6.0, None]
    assert found(answer, ["spike_features__mid"]) == expected(frame, ["mid"])
    with pytest.raises(Exception, match="full_feature_names"):
        store.get_historical_features(frame, refs)


def test_without_entities_every_moment_of_the_range_is_asked(store):
    start, end = (datetime.fromtimestamp(START_US / 1e6 + s, UTC) for s in (10, 20))
    answer = store.get_historical_features(features=["spike_features:mid"], start_date=start, end_date=end).to_arrow()
    inside = pl.DataFrame(pl.from_arrow(ROWS)).filter(pl.col("row_time").is_between(start, end))
    moments = inside.select("product_id", "row_time").unique().sort("row_time", "product_id")
    assert answer.column("product_id").to_pylist() == moments["product_id"].to_list()
    assert answer.column("event_timestamp").to_pylist() == moments["row_time"].to_list()
    asked = pd.DataFrame({"product_id": moments["product_id"], "event_timestamp": moments["row_time"]})
    assert found(answer, ["mid"]) == expected(asked, ["mid"])


def test_saved_dataset_comes_back_equal(store, tmp_path):
    from feast.errors import SavedDatasetLocationAlreadyExists
    from feast.infra.offline_stores.file_source import SavedDatasetFileStorage

    job = store.get_historical_features(asked_frame(30).drop(columns="big"), store.get_feature_service("spike_core_v1"))
    storage = SavedDatasetFileStorage(path=str(tmp_path / "saved.parquet"))
    with pytest.warns(RuntimeWarning, match="experimental"):
        store.create_saved_dataset(job, "training", storage)
    names = list(SERVICES["spike_core_v1"])
    with pytest.warns(RuntimeWarning, match="experimental"):
        again = store.get_saved_dataset("training").to_arrow()
    assert sorted(map(repr, found(again, names))) == sorted(map(repr, found(job.to_arrow(), names)))
    with pytest.raises(SavedDatasetLocationAlreadyExists):
        job.persist(storage)
    job.persist(storage, allow_overwrite=True)
    assert [p.name for p in tmp_path.iterdir()] == ["saved.parquet"]


def pulled(store, kind: str, **options):
    from feature_repo.definitions import spike_table
    from feature_repo.offline_store import PolarsOfflineStore

    pull = getattr(PolarsOfflineStore, f"pull_{kind}_from_table_or_query")
    job = pull(store.config, spike_table, ["product_id"], ["mid"], "row_time", "created_timestamp", **options)
    return job.to_arrow()


def test_pull_latest_takes_the_newest_row_with_the_greatest_created_time(store):
    end = datetime.fromtimestamp(START_US / 1e6 + 30, UTC)
    frame = pl.DataFrame(pl.from_arrow(ROWS)).filter(pl.col("row_time") <= end)
    ordered = frame.sort("row_time", "created_timestamp", maintain_order=True)
    best = ordered.group_by("product_id").last().sort("product_id")
    answer = pl.DataFrame(pl.from_arrow(pulled(store, "latest", end_date=end))).sort("product_id")
    assert answer.columns == ["product_id", "mid", "row_time", "created_timestamp"]
    assert answer.equals(best.select(answer.columns))


def test_pull_all_takes_both_ends_of_the_range(store):
    start, end = (datetime.fromtimestamp(START_US / 1e6 + s, UTC) for s in (10, 20))
    inside = pl.DataFrame(pl.from_arrow(ROWS)).filter(pl.col("row_time").is_between(start, end))
    answer = pl.DataFrame(pl.from_arrow(pulled(store, "all", start_date=start, end_date=end)))
    assert answer.sort(answer.columns).equals(inside.select(answer.columns).sort(answer.columns))


@pytest.mark.parametrize(
    ("frame", "said"),
    [
        ("SELECT * FROM labels", "SQL"),
        (pd.DataFrame({"event_timestamp": [pd.Timestamp.now("UTC")]}), "product_id"),
        (pd.DataFrame({"product_id": ["BTC-USD"]}), "event_timestamp"),
        (pd.DataFrame({"product_id": ["BTC-USD"], "event_timestamp": [1.7e9]}), "numbers"),
        (pd.DataFrame({"product_id": ["BTC-USD"], "event_timestamp": ["yesterday"]}), "ISO 8601"),
        (pd.DataFrame({"product_id": ["B"], "event_timestamp": [pd.Timestamp.now("UTC")], "mid": [1.0]}), "mid"),
        ({"product_id": ["BTC-USD"]}, "dict"),
    ],
)
def test_an_entity_table_that_cannot_be_joined_is_refused_by_name(store, frame, said):
    with pytest.raises(InputError, match=said):
        store.get_historical_features(frame, ["spike_features:mid"])


def test_a_missing_table_is_named_and_says_what_to_do(store, patch, tmp_path):
    with pytest.MonkeyPatch.context() as context:
        context.setenv("VOLSPIKE_DATA", str(tmp_path))
        settings.cache_clear()
        with pytest.raises(StoreError, match="volspike replay"):
            store.get_historical_features(asked_frame(2), ["spike_features:mid"])
    settings.cache_clear()


def test_a_scan_stays_at_its_version_while_others_write(patch, tmp_path):
    from feature_repo.definitions import spike_table
    from feature_repo.source import scan

    with pytest.MonkeyPatch.context() as context:
        context.setenv("VOLSPIKE_DATA", str(tmp_path))
        settings.cache_clear()
        write_table(settings().tables, feature_rows("BTC-USD", range(10)))
        rows = scan(spike_table, None)
        before = rows.select("n").collect()
        write_table(settings().tables, feature_rows("BTC-USD", range(10, 20), first_n=11))
        assert rows.select("n").collect().equals(before)
        assert scan(spike_table, None).select("n").collect().height == 20
    settings.cache_clear()


def test_pushed_rows_are_checked_and_written_once(patch, tmp_path):
    from feature_repo.definitions import spike_table
    from feature_repo.writing import append_rows

    with pytest.MonkeyPatch.context() as context:
        context.setenv("VOLSPIKE_DATA", str(tmp_path))
        settings.cache_clear()
        first, later = feature_rows("BTC-USD", range(5)), feature_rows("BTC-USD", range(8))
        assert append_rows(spike_table, pa.concat_tables([first, first.slice(1, 2)]), None) == 5
        assert append_rows(spike_table, later, None) == 3
        assert append_rows(spike_table, later, None) == 0
        table = pl.read_delta(str(settings().tables / "spike_features"))
        assert sorted(table["n"]) == list(range(1, 9))
        assert table.columns == later.column_names
        infinite = later.set_column(later.column_names.index("mid"), "mid", pa.array([float("inf")] * 8))
        for bad, said in [(infinite, "infinity"), (later.drop_columns("mid"), "missing columns .'mid'")]:
            with pytest.raises(ContractError, match=said):
                append_rows(spike_table, bad, None)
    settings.cache_clear()

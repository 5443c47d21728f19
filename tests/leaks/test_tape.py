"""Features and labels against the tape: what a table says must follow from the lines before each row."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import polars as pl
import pytest

from tests.leaks.market import Source, label, source
from tests.leaks.pipeline import FEATURES
from training.audit import Evidence, audit, future


@pytest.fixture(scope="module")
def market() -> Source:
    return source(2, sessions=(1500, 1300), products=("BTC-USD",))


@pytest.fixture(scope="module")
def tapes(market, tmp_path_factory):
    folder = tmp_path_factory.mktemp("tapes")
    for i, content in enumerate(market.tapes):
        (folder / f"{i}.ndjson").write_bytes(content)
    return tuple(sorted(folder.iterdir()))


def described(market: Source, tapes: tuple[Path, ...]) -> Evidence:
    """All rows with a label and full windows; no model is needed to compare them with the tape."""
    keys = ["product_id", "session", "n", "k"]
    rows = market.labels.filter(pl.col("sigma_fwd").is_not_null() & (pl.col("coverage_s") >= 900))
    rows = rows.with_columns(tau=rows["sigma_fwd"].quantile(0.9), block=pl.lit("train"))
    rows = rows.with_columns(spike=pl.col("sigma_fwd") >= pl.col("tau"))
    values = rows.select(keys).join(market.table, on=keys, how="left", maintain_order="left").select(FEATURES)
    x = values.select(pl.all().cast(pl.Float64).fill_null(float("nan"))).to_numpy()
    return Evidence(rows, x, FEATURES, quotes=market.quotes, table=market.table, tapes=tapes)


def test_run_agrees_with_its_tapes(market, tapes):
    assert list(future.tape(described(market, tapes))) == []


def test_small_pieces_give_the_rows_of_one_push(market, tapes):
    session = market.table["session"][0]
    again = future.replayed(session, [future.Tape(tapes[0], tapes[0].stat().st_size)], frozenset({"BTC-USD"}))
    before = market.table.filter(pl.col("session") == session)
    assert again.table.select(before.columns).equals(before)
    assert again.singly > 10


def test_table_that_knew_the_future_is_convicted_by_the_tape(market, tapes):
    name = "w60_realized_vol"
    moved = market.table.with_columns(pl.col(name).shift(-30).over("product_id", "session"))
    evidence = described(replace(market, table=moved), tapes)
    assert audit(evidence, quick=True).clean  # the run agrees with its table
    codes = {f.code for f in future.tape(evidence)}
    assert codes == {"FEATURE_FROM_FUTURE"}


def test_quotes_that_were_changed_are_convicted_by_the_tape(market, tapes):
    higher = pl.when(pl.col("n") % 2 == 0).then(pl.col("bid") * 1.0001).otherwise(pl.col("bid"))
    quotes = market.quotes.with_columns(higher.alias("bid"))
    wrong = replace(market, quotes=quotes, labels=label(market.table, quotes))
    evidence = described(wrong, tapes)
    assert "LABEL_NOT_FORWARD" in {f.code for f in future.tape(evidence)}


def test_missing_tape_is_said_and_not_held_against_the_run(market, tapes):
    found = list(future.tape(described(market, tapes[:1])))
    assert [(f.code, f.severity) for f in found] == [("TAPE", "unchecked")]

"""Features and labels against the tape: what a table says must follow from the lines before each row."""

from __future__ import annotations

from dataclasses import replace

import polars as pl
import pytest

from tests.leaks.market import Source, source
from tests.leaks.pipeline import build
from training.audit import audit, future


@pytest.fixture(scope="module")
def market() -> Source:
    return source(2, products=("BTC-USD",))


@pytest.fixture(scope="module")
def tapes(market, tmp_path_factory):
    folder = tmp_path_factory.mktemp("tapes")
    for i, content in enumerate(market.tapes):
        (folder / f"{i}.ndjson").write_bytes(content)
    return tuple(sorted(folder.iterdir()))


def test_run_agrees_with_its_tapes(market, tapes):
    assert list(future.tape(replace(build(market, kind="zscore"), tapes=tapes))) == []


def test_small_pieces_give_the_rows_of_one_push(market, tapes):
    session = market.table["session"][0]
    again = future.replayed(session, [future.Tape(tapes[0], tapes[0].stat().st_size)], frozenset({"BTC-USD"}))
    before = market.table.filter(pl.col("session") == session)
    assert again.table.select(before.columns).equals(before)
    assert again.singly > 20


def test_table_that_knew_the_future_is_convicted_by_the_tape(market, tapes):
    name = "w60_realized_vol"
    moved = market.table.with_columns(pl.col(name).shift(-30).over("product_id", "session"))
    evidence = replace(build(replace(market, table=moved), kind="zscore"), tapes=tapes)
    assert audit(evidence, quick=True).clean  # the run agrees with its table
    codes = {f.code for f in future.tape(evidence)}
    assert codes == {"FEATURE_FROM_FUTURE"}


def test_quotes_that_were_changed_are_convicted_by_the_tape(market, tapes):
    higher = pl.when(pl.col("n") % 2 == 0).then(pl.col("bid") * 1.0001).otherwise(pl.col("bid"))
    quotes = market.quotes.with_columns(higher.alias("bid"))
    from tests.leaks.market import label

    wrong = replace(market, quotes=quotes, labels=label(market.table, quotes))
    evidence = replace(build(wrong, kind="zscore"), tapes=tapes)
    assert "LABEL_NOT_FORWARD" in {f.code for f in future.tape(evidence)}


def test_missing_tape_is_said_and_not_held_against_the_run(market, tapes):
    found = list(future.tape(replace(build(market, kind="zscore"), tapes=tapes[:1])))
    assert [(f.code, f.severity) for f in found] == [("TAPE", "unchecked")]

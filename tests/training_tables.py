"""Small tables for the training tests: two products, a volatility that comes and goes, features that half know it."""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from feature_repo import contract
from ingestion import tables

S = 1_000_000_000
START = 1_700_000_000 * S
SESSION = "5e55101234567890"


def write(*, seconds=6 * 3600, products=("BTC-USD", "ETH-USD"), flat=(), seed=0, session=SESSION, start=START):
    """Write grid rows and one quote a second; products in ``flat`` never move. Returns rows written per product."""
    for i, product in enumerate(products):
        rng = np.random.default_rng([seed, i])
        regime = np.repeat(rng.choice([1.0, 4.0], size=seconds // 300 + 1, p=[0.8, 0.2]), 300)[:seconds]
        move = rng.normal(size=seconds) * 1e-5 * regime * (product not in flat)
        mid = 1000.0 * np.exp(np.cumsum(move))
        t = start + np.arange(seconds) * S
        _append("quotes", product, session, t, {"kind": ["quote"] * seconds, "bid": mid - 0.01, "ask": mid + 0.01})
        features: dict[str, object] = {"trigger": ["grid"] * seconds, "event_time_ns": t}
        for f in contract.FEATURES:
            known = f.stat in ("realized_vol", "mid_return_std", "return_std")
            value = regime * rng.lognormal(0, 0.3, seconds) if known else rng.normal(size=seconds)
            if f.stat == "ob_ofi":
                value = np.full(seconds, np.nan)  # never known, as on a tape without a book
            if f.stat == "trade_imbalance":
                value = np.where(rng.random(seconds) < 0.3, np.nan, value)
            features[f.name] = value
        features["coverage_s"] = np.minimum(900.0, np.arange(seconds))
        _append("spike_features", product, session, t, features)


def _append(name, product, session, t, values):
    n = np.arange(1, len(t) + 1)
    stamp = pa.array(t // 1000, pa.timestamp("us", tz="UTC"))
    ready = {"product_id": [product] * len(t), "session": [session] * len(t), "n": n, "k": np.full(len(t), -1)}
    ready |= {"row_time": stamp, "created_timestamp": stamp, "event_time_ns": t} | values
    columns = []
    for field in tables.schema(name):
        column = ready.get(field.name)
        if column is None:
            columns.append(pa.nulls(len(t), field.type))
        elif isinstance(column, np.ndarray) and pa.types.is_integer(field.type):
            columns.append(pa.array(column.astype(np.int64)).cast(field.type))
        elif isinstance(column, np.ndarray):
            columns.append(pa.array(column, from_pandas=True))
        else:
            columns.append(pa.array(column, field.type))
    tables.append(
        name, pa.Table.from_arrays(columns, schema=tables.schema(name)), n, {(session, product): int(n[-1])}
    )

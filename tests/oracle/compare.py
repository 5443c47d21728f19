"""Where a kernel's result and the oracle's differ, said so that a reader can look it up."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import pyarrow as pa

from feature_repo.contract import FEATURE_NAMES
from tests.oracle.state import Result

ROW_FIELDS = ("session", "n", "k", "trigger", "event_time_ns", "row_time_us", "created_us")
QUOTE_FIELDS = ("session", "n", "k", "kind", "event_time_ns", "created_us", "bid", "ask", "bid_size", "ask_size")
_CREATED, _KIND = QUOTE_FIELDS.index("created_us"), QUOTE_FIELDS.index("kind")


def _columns(table: pa.Table, names: Iterable[str]) -> list[tuple[Any, ...]]:
    taken = []
    for name in names:
        source = {"row_time_us": "row_time", "created_us": "created_timestamp"}.get(name, name)
        column = table[source]
        taken.append(column.cast(pa.int64()).to_pylist() if source != name else column.to_pylist())
    return list(zip(*taken, strict=True)) if taken else []


def _by_product(products: Iterable[str], records: Iterable[Any]) -> dict[str, list[Any]]:
    found: dict[str, list[Any]] = defaultdict(list)
    for product, record in zip(products, records, strict=True):
        found[product].append(record)
    return found


def _series(name: str, fields: tuple[str, ...], got: dict[str, list[Any]], want: dict[str, list[Any]]) -> Iterator[str]:
    for product in sorted(got.keys() | want.keys()):
        a, b = got.get(product, []), want.get(product, [])
        for i, (x, y) in enumerate(zip(a, b, strict=False)):
            if x != y:
                parts = [f"{f}: kernel {p!r}, oracle {q!r}" for f, p, q in zip(fields, x, y, strict=True) if p != q]
                yield f"{name} {product}[{i}] (oracle n={y[1]} k={y[2]}): " + "; ".join(parts)
                break
        if len(a) != len(b):
            yield f"{name} {product}: kernel has {len(a)}, oracle {len(b)}"


def _edge_without_created(quote: tuple[Any, ...]) -> tuple[Any, ...]:
    """Leave created_timestamp to :func:`edge_differences` where the row is the edge of a gap."""
    return quote if quote[_KIND] == "quote" else (*quote[:_CREATED], None, *quote[_CREATED + 1 :])


def close(got: float | int | None, want: float | int | None, scale: float) -> bool:
    """|a − b| ≤ 1e-9·|b| + 1e-12·scale, null exactly where null."""
    if got is None or want is None:
        return got is want
    return math.isfinite(got) and abs(got - want) <= 1e-9 * abs(want) + 1e-12 * scale


def edge_differences(quotes: pa.Table, oracle: Result) -> list[str]:
    """List the edges of gaps whose created_timestamp differs."""
    edges = [q for q in quotes.to_pylist() if q["kind"] != "quote"]
    got = {(q["product_id"], q["n"], q["k"], q["kind"]): q["created_timestamp"] for q in edges}
    found = []
    for q in oracle.quotes:
        if q["kind"] != "quote":
            key = (q["product_id"], q["n"], q["k"], q["kind"])
            created = round(got[key].timestamp() * 1e6) if key in got else None
            if created != q["created_us"]:
                found.append(f"created of {key}: kernel {created}, oracle {q['created_us']}")
    return found


def differences(rows: pa.Table, quotes: pa.Table, oracle: Result) -> list[str]:
    """List what differs: row ids and times, quotes, and the features of the rows that the oracle computed."""
    products = rows["product_id"].to_pylist()
    found = list(_series(
        "row", ROW_FIELDS, _by_product(products, _columns(rows, ROW_FIELDS)),
        _by_product((r["product_id"] for r in oracle.rows), (tuple(r[f] for f in ROW_FIELDS) for r in oracle.rows)),
    ))  # fmt: skip
    found += _series(
        "quote", QUOTE_FIELDS,
        _by_product(quotes["product_id"].to_pylist(), map(_edge_without_created, _columns(quotes, QUOTE_FIELDS))),
        _by_product(
            (q["product_id"] for q in oracle.quotes),
            (_edge_without_created(tuple(q[f] for f in QUOTE_FIELDS)) for q in oracle.quotes),
        ),
    )  # fmt: skip
    where = {key: i for i, key in enumerate(_columns(rows, ("product_id", "session", "n", "k")))}
    wanted = [r for r in oracle.rows if r["features"] is not None]
    pairs = [(where[key], r) for r in wanted if (key := (r["product_id"], r["session"], r["n"], r["k"])) in where]
    cells = rows.select(FEATURE_NAMES).take([i for i, _ in pairs]).to_pylist() if pairs else []
    for got, (_, row) in zip(cells, pairs, strict=True):
        for name in FEATURE_NAMES:
            value, scale = row["features"].get(name), row["scales"].get(name, 0.0)
            if not close(got[name], value, scale):
                found.append(
                    f"feature {name} of {row['product_id']} n={row['n']} k={row['k']} t={row['event_time_ns']}: "
                    f"kernel {got[name]!r}, oracle {value!r}, scale {scale:.3g}"
                )
    return found


COUNTS = {"late": "late", "reordered": "reordered", "future": "future", "duplicate": "duplicate", "gaps": "gaps",
          "crossed": "crossed", "gap_crossed": "crossed_book", "crossed_snapshot": "crossed_snapshot",
          "one_sided": "one_sided", "unknown_delete": "unknown_deletes", "ignored_book": "ignored",
          "sequence_loss": "sequence_loss", "malformed": "malformed"}  # fmt: skip
"""The kernel's name of a count -> the oracle's."""


def count_differences(counts: Mapping[str, int], oracle: Result) -> list[str]:
    """List the counts that differ, those of the message types included."""
    names = COUNTS | {key.removeprefix("type:"): key for key in oracle.counts if key.startswith("type:")}
    pairs = [(name, counts.get(name, 0), oracle.counts[key]) for name, key in names.items()]
    pairs.append(("ticker_rows", counts.get("ticker_rows", 0), sum(r["trigger"] == "ticker" for r in oracle.rows)))
    pairs.append(("grid_rows", counts.get("grid_rows", 0), sum(r["trigger"] == "grid" for r in oracle.rows)))
    pairs.append(("quotes", counts.get("quotes", 0), sum(q["kind"] == "quote" for q in oracle.quotes)))
    return [f"count {name}: kernel {got}, oracle {want}" for name, got, want in pairs if got != want]

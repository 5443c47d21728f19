"""What must not matter to the kernel's rows, to the last bit: how lines are cut up, what comes later, a restart."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Iterable

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ingestion.kernel import Featurizer, Rows, stream_rows
from tests.oracle import advanced, bad, tapes
from tests.oracle.streams import damage, streams

SESSION = "0123456789abcdef"
CUT: dict[str, Callable[[], list[bytes]]] = {
    "jumps": lambda: tapes.jumps(110), "book": tapes.adversarial_book, "two_products": lambda: tapes.two_products(90),
    "two_sessions": tapes.two_sessions, "advanced_losses": advanced.TAPES["advanced_losses"],
    "book_after_tickers": tapes.book_after_tickers, "silent_day": tapes.silent_day,
    "matches_and_tickers": lambda: tapes.matches_and_tickers(110), "repeated_n": tapes.repeated_numbers,
    "mixed": lambda: [text for text in bad.mixed() if len(text) < 10_000],
}  # fmt: skip
QUIET = settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)


def bits(table: pa.Table) -> dict[str, list[bytes]]:
    """Give each product's rows as bytes, in order: equal only if every bit is."""
    columns = []
    for name in table.column_names:
        column = table[name].combine_chunks()
        if pa.types.is_floating(column.type):
            plain = np.nan_to_num(column.to_numpy(zero_copy_only=False), nan=0.0).view(np.int64).tolist()
        else:
            plain = column.to_pylist()
        columns.append(list(zip(plain, column.is_null().to_pylist(), strict=True)))
    found: dict[str, list[bytes]] = {}
    for row in zip(*columns, strict=True):
        found.setdefault(row[0][0], []).append(repr(row).encode())
    return found


Made = dict[str, list[bytes]]


def streamed(lines: Iterable[bytes]) -> tuple[Made, Made]:
    result = stream_rows(lines, session=SESSION)
    return bits(result.rows), bits(result.quotes)


def starts_with(whole: dict[str, list[bytes]], part: dict[str, list[bytes]]) -> bool:
    return all(whole.get(product, [])[: len(rows)] == rows for product, rows in part.items())


def pushed(featurizer: Featurizer, lines: list[bytes]) -> Rows:
    return featurizer.push_lines(b"".join(lines))


@pytest.mark.parametrize("name", CUT)
def test_chunks_do_not_matter(name: str) -> None:
    lines = CUT[name]()
    whole = stream_rows(lines, session=SESSION)
    for chunk_lines in (1, 7):
        cut = stream_rows(lines, session=SESSION, chunk_lines=chunk_lines)
        assert (bits(cut.rows), bits(cut.quotes)) == (bits(whole.rows), bits(whole.quotes))
        assert cut.counts == whole.counts


@pytest.mark.parametrize("name", CUT)
def test_what_comes_later_changes_no_row(name: str) -> None:
    lines = CUT[name]()
    rows, quotes = streamed(lines)
    for at in random.Random(name).sample(range(1, len(lines)), 2):
        before_rows, before_quotes = streamed(lines[:at])
        assert starts_with(rows, before_rows) and starts_with(quotes, before_quotes)
        later_rows, later_quotes = streamed(lines[:at] + [damage(text) for text in lines[at:]])
        assert starts_with(later_rows, before_rows) and starts_with(later_quotes, before_quotes)


@pytest.mark.parametrize("name", CUT)
def test_a_restart_changes_nothing(name: str) -> None:
    lines = CUT[name]()
    for at in random.Random(name).sample(range(len(lines)), 2):
        going = Featurizer(SESSION)
        pushed(going, lines[:at])
        saved = going.save()
        restored = Featurizer.restore(saved)
        assert restored.save() == saved
        kept, again = pushed(going, lines[at:]), pushed(restored, lines[at:])
        assert bits(again.features) == bits(kept.features) and bits(again.quotes) == bits(kept.quotes)
        assert again.cause_n.tolist() == kept.cause_n.tolist()
        assert restored.save() == going.save()


@QUIET
@given(streams(), st.data())
def test_restarts_and_tails_of_random_streams(lines: list[bytes], data: st.DataObject) -> None:
    at = data.draw(st.integers(0, len(lines)))
    going = Featurizer(SESSION)
    first = pushed(going, lines[:at])
    second = pushed(Featurizer.restore(going.save()), lines[at:])
    rows, quotes = streamed(lines)
    parts = bits(first.features), bits(second.features)
    assert {p: parts[0].get(p, []) + parts[1].get(p, []) for p in parts[0] | parts[1]} == rows
    parts = bits(first.quotes), bits(second.quotes)
    assert {p: parts[0].get(p, []) + parts[1].get(p, []) for p in parts[0] | parts[1]} == quotes
    assert starts_with(streamed(lines[:at] + [damage(text) for text in lines[at:]])[0], bits(first.features))


def test_whether_lines_end_with_a_newline_does_not_matter() -> None:
    lines = tapes.two_products(60)
    assert streamed(text.rstrip() for text in lines) == streamed(lines)


def test_bad_lines_change_no_feature() -> None:
    """Rows of good lines are the same with every bad line between them; only their n differs."""
    good = tapes.two_products(200)
    worst = [text for text in bad.malformed().values() if len(text) < 10_000]
    woven = [text for pair in itertools.zip_longest(good, worst) for text in pair if text is not None]
    assert 100 < len(worst) < len(good)
    clean, broken = stream_rows(good, session=SESSION), stream_rows(woven, session=SESSION)
    assert broken.counts["malformed"] == len(worst)
    for a, b in ((clean.rows, broken.rows), (clean.quotes, broken.quotes)):
        assert bits(a.drop_columns(["n"])) == bits(b.drop_columns(["n"]))

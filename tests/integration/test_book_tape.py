"""The book on an hour of recorded level 2: no unknown delete, never crossed, equal to a dict that is sorted."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import numpy as np

from ingestion.kernel import Featurizer
from ingestion.kernel.book import ASKS, BIDS, side_levels
from tests.oracle.book import Book

POINTS = 1000
FULL_EVERY = 100
TOP = 10
SIDES = ("bid", "ask")


def test_an_hour_of_level2_equals_a_sorted_dict(shared_data: Path) -> None:
    lines = gzip.open(shared_data / "exchange_BTC-USD_20180424_l2_60min.ndjson.gz").read().splitlines(keepends=True)
    featurizer = Featurizer()
    naive = Book()
    cuts = np.linspace(1, len(lines), POINTS + 1).astype(int)
    at = 0
    for point, cut in enumerate(cuts):
        featurizer.push_lines(b"".join(lines[at:cut]))
        for line in lines[at:cut]:
            message = json.loads(line)
            if message["type"] == "snapshot":
                naive.apply((side, float(p), float(q)) for side in SIDES for p, q in message[f"{side}s"])
            else:
                naive.apply((SIDES[side == "sell"], float(p), float(q)) for side, p, q in message["changes"])
        at = cut
        book = featurizer.state("BTC-USD").book if point else None
        if book is None:
            continue  # the snapshot has no time of its own and waits for the first update
        assert not naive.crossed
        for which, side in zip((BIDS, ASKS), SIDES, strict=True):
            levels, known = side_levels(book, which), naive.sides[side]
            assert len(levels) == len(known.order)
            most = len(known.order) if point % FULL_EVERY == 0 else TOP
            assert levels[:most].tolist() == [list(level) for level in known.best(most)]
    assert naive.unknown_deletes == 0
    assert featurizer.counts["unknown_delete"] == 0
    assert featurizer.counts["gap_crossed"] == 0
    assert featurizer.counts["gaps"] == 0

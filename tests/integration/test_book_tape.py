"""The book on an hour of recorded level 2: no unknown delete, never crossed, equal to a dict that is sorted."""

from __future__ import annotations

import gzip
import heapq
import json
from pathlib import Path

import numpy as np

from ingestion.kernel import Featurizer
from ingestion.kernel.book import ASKS, BIDS, side_levels

POINTS = 1000
FULL_EVERY = 100
TOP = 10


def test_an_hour_of_level2_equals_a_sorted_dict(shared_data: Path) -> None:
    lines = gzip.open(shared_data / "exchange_BTC-USD_20180424_l2_60min.ndjson.gz").read().splitlines(keepends=True)
    featurizer = Featurizer()
    naive: tuple[dict[float, float], dict[float, float]] = ({}, {})
    cuts = np.linspace(1, len(lines), POINTS + 1).astype(int)
    at = 0
    for point, cut in enumerate(cuts):
        featurizer.push_lines(b"".join(lines[at:cut]))
        for line in lines[at:cut]:
            message = json.loads(line)
            if message["type"] == "snapshot":
                for side, name in ((BIDS, "bids"), (ASKS, "asks")):
                    naive[side].update((float(p), float(q)) for p, q in message[name])
                continue
            for side_name, p, q in message["changes"]:
                side = naive[BIDS if side_name == "buy" else ASKS]
                if float(q):
                    side[float(p)] = float(q)
                else:
                    del side[float(p)]  # an unknown delete would raise
        at = cut
        book = featurizer.state("BTC-USD").book if point else None
        if book is None:
            continue  # the snapshot has no time of its own and waits for the first update
        assert max(naive[BIDS]) < min(naive[ASKS])
        for side, best_first in ((BIDS, heapq.nlargest), (ASKS, heapq.nsmallest)):
            most = len(naive[side]) if point % FULL_EVERY == 0 else TOP
            expected = [(p, naive[side][p]) for p in best_first(most, naive[side])]
            assert side_levels(book, side, most).tolist() == [list(level) for level in expected]
            assert len(side_levels(book, side)) == len(naive[side])
    assert featurizer.counts["unknown_delete"] == 0
    assert featurizer.counts["gap_crossed"] == 0
    assert featurizer.counts["gaps"] == 0

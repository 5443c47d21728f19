"""Write a generated tape, or print its figures beside those of recorded ones.

::

    python -m ingestion.market --seed 7 --seconds 3600 --out .
    python -m ingestion.market --calibrate
    python -m ingestion.market --calibrate --tape some_recording.ndjson.gz
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from feature_repo.errors import VolspikeError
from ingestion.market import PRODUCTS, START_NS, generate, latent, write_tape
from ingestion.market.calibrate import RECORDED, Figures, figures, foresight, quotes_of, read_lines, to_json

_HEAD = f"{'':48}{'tickers/s':>10}{'ties':>7}{'zeros':>7}{'p50':>10}{'p90':>10}{'p99':>10}"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return its exit code."""
    parser = argparse.ArgumentParser(prog="python -m ingestion.market", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--seed", type=int, default=1, help="seed of the tape")
    parser.add_argument("--seconds", type=int, default=10_800, help="length of the tape in event time")
    parser.add_argument("--products", default=",".join(PRODUCTS), help="comma-separated")
    parser.add_argument("--out", type=Path, default=Path(), help="file or folder of the tape")
    parser.add_argument("--form", choices=("envelope", "raw"), default="envelope")
    parser.add_argument("--calibrate", action="store_true", help="print figures and foresight, write no tape")
    parser.add_argument("--tape", type=Path, action="append", default=[], help="a recorded tape to set beside")
    parser.add_argument("--json", action="store_true", help="print the generated figures as one JSON object")
    given = parser.parse_args(arguments)
    products = [p.strip() for p in given.products.split(",") if p.strip()]
    try:
        if given.calibrate:
            _calibrate(given.seed, given.seconds, products, given.tape, given.json)
        else:
            summary = write_tape(
                given.out, seed=given.seed, seconds=given.seconds, products=products, form=given.form
            )
            print(f"{summary.path}: {summary.messages} messages, session {summary.session}, generated, no evidence")
    except VolspikeError as error:
        print(f"ingestion.market: {error}", file=sys.stderr)
        return error.exit_code
    return 0


def _calibrate(seed: int, seconds: int, products: Sequence[str], tapes: Sequence[Path], as_json: bool) -> None:
    messages = generate(seed=seed, seconds=seconds, products=products)
    quotes = quotes_of(raw for _, _, raw in messages)
    found = {product: figures(q.ticker_s, q.ticker_mid) for product, q in quotes.items()}
    if as_json:
        print(to_json(found))
        return
    print("One-second log mid returns of tickers; p50, p90, p99 of their trailing 60-s standard deviation.\n")
    print(_HEAD)
    for name, (rate, zeros, *std) in RECORDED.items():
        print(_row(f"recorded {name}", Figures(rate, float("nan"), zeros, (std[0], std[1], std[2]))))
    for path in tapes:
        for product, q in quotes_of(read_lines(path)).items():
            if len(q.ticker_s):
                print(_row(f"{path.name[:29]} {product}", figures(q.ticker_s, q.ticker_mid)))
    for product, found_figures in found.items():
        print(_row(f"generated {product}, seed {seed}, {seconds} s", found_figures))
    print(f"\n{'PR-AUC of the next 60 s (book mids)':48}{'prevalence':>12}{'EWMA':>8}{'oracle h':>10}")
    hidden = latent(seed=seed, seconds=seconds, products=products)
    for product, q in quotes.items():
        known = foresight(q.book_s, q.book_mid, hidden[product].h, START_NS / 1e9)
        print(f"generated {product:38}{known.prevalence:12.3f}{known.ewma:8.3f}{known.oracle:10.3f}")
    print("\nGenerated for demonstration and tests: no evidence about a market.")


def _row(name: str, f: Figures) -> str:
    ties = "–" if f.ties != f.ties else f"{f.ties:.0%}"
    return f"{name:48}{f.tickers_per_s:10.1f}{ties:>7}{f.zeros:7.0%}" + "".join(f"{x:10.1e}" for x in f.std)


if __name__ == "__main__":
    sys.exit(main())

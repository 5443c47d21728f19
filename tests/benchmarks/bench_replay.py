"""How fast, how evenly and in how much memory a replay runs, on one core; both sides of a ratio in one run.

A replay writes its tables in a second thread: its rate is measured with both threads on one core, then on two.

The rate is that of a long tape. One of a tenth of its length is shown beside it: there, the process still asks the
system for its memory, which a virtual machine may have to ask its host for (15 µs a page, measured).

Caveats: the tape is made here (one product, 400 bytes a ticker, 14 tickers a second as on the busiest recorded tape),
lies uncompressed in the file cache, and the first run compiles nothing because a small tape warms the cache before. The
table is written to the temporary folder's disk.
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
TICKERS = 300_000
QUICK = {"tickers": 30_000}
START = 1_762_932_011_000_000_000


def write_tickers(path: Path, count: int, rate: float = 14.0, seed: int = 1) -> None:
    """Write Exchange tickers of one product: a walk on a grid of cents, half of the times equal to the one before."""
    rng = np.random.default_rng(seed)
    gaps = rng.exponential(2e6 / rate, count).astype(np.int64) * rng.integers(0, 2, count)
    times = START // 1000 + np.cumsum(gaps)
    price = 10_347_228 + np.cumsum(rng.integers(-30, 31, count) * (rng.random(count) < 0.5))
    sizes = rng.integers(1, 10**8, (3, count))
    side = rng.integers(0, 2, count)
    stamps = np.datetime_as_string(times.astype("M8[us]"), unit="us")
    with path.open("w") as out:
        for i in range(count):
            p, b, a, s = int(price[i]), sizes[0, i], sizes[1, i], sizes[2, i]
            out.write(
                f'{{"type":"ticker","sequence":{115498669093 + 3 * i},"product_id":"BTC-USD","price":"{p / 100:.2f}",'
                f'"open_24h":"104763.2","volume_24h":"5461.74127717","low_24h":"102422.43","high_24h":"105504.83",'
                f'"volume_30d":"222137.61075405","best_bid":"{(p - 1) / 100:.2f}","best_bid_size":"{b / 1e8:.8f}",'
                f'"best_ask":"{p / 100:.2f}","best_ask_size":"{a / 1e8:.8f}","side":"{"buy" if side[i] else "sell"}",'
                f'"time":"{stamps[i]}Z","trade_id":{900701309 + i},"last_size":"{s / 1e8:.8f}"}}\n'
            )


def _child(job: str, *args: str, cores: int = 1) -> dict[str, float]:
    one = {f"{name}_NUM_THREADS": "1" for name in ("ARROW", "OMP", "NUMBA", "OPENBLAS", "RAYON")}
    env = {**os.environ, **one, "POLARS_MAX_THREADS": "1", "ARROW_IO_THREADS": "1"}
    with _cores(cores):  # a child runs where its parent may
        done = subprocess.run(
            [sys.executable, __file__, job, *args], env=env, cwd=ROOT, check=True, stdout=subprocess.PIPE
        )
    return json.loads(done.stdout.splitlines()[-1])


@contextmanager
def _cores(count: int) -> Iterator[None]:
    """Let this process run on so many cores for the time of the block, where the system can (Linux)."""
    if not hasattr(os, "sched_setaffinity"):
        yield
        return
    allowed = os.sched_getaffinity(0)
    os.sched_setaffinity(0, set(sorted(allowed)[:count]))
    try:
        yield
    finally:
        os.sched_setaffinity(0, allowed)


def _warm(folder: Path) -> None:
    from ingestion.replay import replay

    folder.mkdir(parents=True, exist_ok=True)
    tape = folder / "warm.ndjson"
    write_tickers(tape, 200, seed=9)
    replay([tape], out=folder / "warm")


def _job_replay(tape: str, folder: str) -> dict[str, float]:
    """Replay one tape to a table."""
    from ingestion.replay import replay

    _warm(Path(folder))
    began = time.perf_counter()
    summary = replay([Path(tape)], out=Path(folder) / "tables")
    seconds = time.perf_counter() - began
    return {"seconds": seconds, "tickers": summary.counts["ticker"], "rows": summary.rows, "peak_bytes": _peak_bytes()}


def _peak_bytes() -> int:
    """Most memory this process held; on Linux not from getrusage, which counts what the parent held when it forked."""
    status = Path("/proc/self/status")
    if status.exists():
        line = next(text for text in status.read_text().splitlines() if text.startswith("VmHWM:"))
        return int(line.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def _job_parts(tape: str, folder: str) -> dict[str, float]:
    """Time decode, kernel and write of feature rows apart on the same tape, in blocks and commits as a replay's."""
    from ingestion.appender import Appender
    from ingestion.kernel import Featurizer
    from ingestion.kernel.featurizer import pieces
    from ingestion.replay import COMMIT_ROWS
    from ingestion.tapes import Tape, read_lines

    _warm(Path(folder))
    featurizer = Featurizer()
    spent = dict.fromkeys(("decode", "kernel", "write"), 0.0)
    tickers = held = 0
    with Appender("spike_features", root=Path(folder) / "apart") as table:
        for data in read_lines(Tape(Path(tape), 0)):
            t0 = time.perf_counter()
            batches = [featurizer.decoder.decode(piece, 2**62) for piece in pieces(data)]
            t1 = time.perf_counter()
            rows = featurizer.push(batches)
            t2 = time.perf_counter()
            table.add(rows.features, rows.cause_n, featurizer.last_n())
            held += rows.features.num_rows
            if held >= COMMIT_ROWS:
                table.commit(featurizer.last_n())
                held = 0
            t3 = time.perf_counter()
            for part, seconds in zip(spent, (t1 - t0, t2 - t1, t3 - t2), strict=True):
                spent[part] += seconds
            tickers += sum(batch.counts["ticker"] for batch in batches)
        t0 = time.perf_counter()
        table.commit(featurizer.last_n())
        spent["write"] += time.perf_counter() - t0
    return {**spent, "tickers": tickers}


def _job_naive(tape: str, _folder: str) -> dict[str, float]:
    """Recompute the same windows of prices, returns and spreads from scratch at every message, with numpy."""
    lines = [json.loads(line) for line in Path(tape).open().readlines()[:13_000]]
    price = np.array([float(m["price"]) for m in lines])
    t = np.array([np.datetime64(m["time"][:-1], "ns").astype(np.int64) for m in lines])
    began = time.perf_counter()
    done = 0
    for i in range(len(lines) - 200, len(lines)):
        for w in (30, 60, 300, 900):
            inside = price[(t > t[i] - w * 10**9) & (t <= t[i])][: i + 1]
            returns = np.diff(inside) / inside[:-1]
            for values in (inside, returns):
                values.mean(), values.std(), values.min(), values.max()
            np.polyfit(np.arange(len(inside)), inside, 1)
            z = (returns - returns.mean()) / (returns.std() or 1.0)
            (z**3).mean(), (z**4).mean()
        done += 1
    return {"per_second": done / (time.perf_counter() - began)}


def _job_window(_tape: str, held: str) -> dict[str, float]:
    """CPU seconds per event of the kernel alone, at a 900 s window that holds so many events."""
    from ingestion.kernel import Featurizer, Options
    from ingestion.kernel.events import EVENT, NO_TIME, TICKER, Batch

    count = 250_000
    rng = np.random.default_rng(3)
    events = np.zeros(count, EVENT)
    events["kind"], events["recv_ns"] = TICKER, NO_TIME
    events["n"] = np.arange(1, count + 1)
    # Steps of 0.5 to 1.5 of the mean, so that no silence makes a gap.
    steps = (rng.random(count) + 0.5) * (900e9 / int(held))
    events["t_ns"] = START + np.cumsum(steps.astype(np.int64))
    events["price"] = (10_347_228 + np.cumsum(rng.integers(-30, 31, count))) / 100
    events["bid"], events["ask"] = events["price"] - 0.01, events["price"] + rng.integers(0, 3, count) / 100
    events["bid_size"], events["ask_size"], events["size"] = rng.random((3, count)) + 0.01
    events["trade_id"] = np.arange(count)
    events["side"] = rng.integers(0, 2, count) * 2 - 1
    featurizer = Featurizer(options=Options(every_s=None))
    featurizer.decoder.session_index("0" * 16)

    def take(lo: int, hi: int) -> float:
        began = time.process_time()
        for at in range(lo, hi, 10_000):
            featurizer.push([Batch(events={"BTC-USD": events[at : at + 10_000]})])
        return time.process_time() - began

    # The windows are full after the first 110,000.
    take(0, 110_000)
    return {"cpu_per_event": take(110_000, count) / (count - 110_000)}


def run(tickers: int = TICKERS) -> list[dict[str, Any]]:
    """Return the measured figures with their targets."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        once, ten = folder / "once.ndjson", folder / "ten.ndjson"
        write_tickers(once, tickers)
        write_tickers(ten, 10 * tickers)
        short = _child("replay", str(once), str(folder / "a"))
        big = _child("replay", str(ten), str(folder / "c"))
        apart = _child("parts", str(ten), str(folder / "b"))
        beside = _child("replay", str(once), str(folder / "d"), cores=2)
        naive = _child("naive", str(once), str(folder))
        narrow = _child("window", "-", "100")
        wide = _child("window", "-", "100000")
    rate, brief, both = (done["tickers"] / done["seconds"] for done in (big, short, beside))
    limit = apart["tickers"] / (apart["decode"] + apart["kernel"] + apart["write"])
    each = {name: 1e6 * apart[name] / apart["tickers"] for name in ("decode", "kernel", "write")}
    return [
        {"metric": "replay, one core", "value": rate, "unit": "tickers/s", "target": 150_000, "op": ">="},
        {"metric": "a tape of a tenth, one core", "value": brief, "unit": "tickers/s"},
        {"metric": "a tape of a tenth, its tables written beside", "value": both, "unit": "tickers/s"},
        {"metric": "share of the limit", "value": rate / limit, "unit": "1", "target": 0.6, "op": ">="}
        | {"versus": limit},
        *({"metric": name, "value": value, "unit": "µs per ticker"} for name, value in each.items()),
        {
            "metric": "ratio to the naive recompute",
            "value": rate / naive["per_second"],
            "unit": "1",
            "versus": naive["per_second"],
        },
        {
            "metric": "CPU per event, 1e5 events held : 1e2",
            "value": wide["cpu_per_event"] / narrow["cpu_per_event"],
            "unit": "1",
            "target": 1.3,
            "op": "<=",
            "versus": 1e6 * narrow["cpu_per_event"],
        },
        {
            "metric": "peak memory of 10× the tape : 1×",
            "value": big["peak_bytes"] / short["peak_bytes"],
            "unit": "1",
            "target": 1.2,
            "op": "<=",
            "versus": short["peak_bytes"] / 2**20,
        },
    ]


if __name__ == "__main__":
    jobs = {"replay": _job_replay, "parts": _job_parts, "naive": _job_naive, "window": _job_window}
    if len(sys.argv) > 1:
        print(json.dumps(jobs[sys.argv[1]](*sys.argv[2:])))
    else:
        for result in run():
            print(result)

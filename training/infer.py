"""Score a parquet file with the artefact that the service loads: the same bytes, verified, the same function."""

from __future__ import annotations

import contextlib
import os
import time
import uuid
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from feature_repo.contract import VIEW
from feature_repo.errors import ContractError, InputError, StoreError, UsageError
from ingestion import tables
from training.artefact import MANIFEST, Artefact, load

BATCH_ROWS: Final = 16_384
"""Rows scored at once, each batch by one thread: up to here an artefact asks no others for help and waits for none."""
READ_ROWS: Final = 65_536
"""Rows read at once: in batches of 16,384 reading takes half as long again."""
SINGLES: Final = 1_000
"""Rows that are scored again one by one, spread over the data, to time one forecast as the service makes it."""
KEPT: Final = ("product_id", "session", "n", "k", "row_time", "event_time_ns")
"""Columns handed on from the data, as far as it has them: what names a row."""
QUANTILES: Final = (50, 90, 95, 99)


@dataclass(frozen=True, slots=True)
class Scored:
    """What was scored, and how long it took.

    Attributes
    ----------
    rows, spikes, blank
        Rows, those at or over the threshold, and those that hold none of the model's features.
    rows_per_s
        Of reading, scoring and writing together.
    latency_ms
        Time of one forecast by itself: p50, p90, p95, p99, max, ms.
    batch_ms
        The same of one batch's forecasts, :data:`BATCH_ROWS` rows but for the last.
    model, digest
        Kind of model; sha256 of its manifest.
    out
        File that was written.
    """

    rows: int
    spikes: int
    blank: int
    rows_per_s: float
    latency_ms: dict[str, float]
    batch_ms: dict[str, float]
    model: str
    digest: str
    out: str

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for ``--json``."""
        return asdict(self)


def artefact_of(ref: str) -> Artefact:
    """Load and verify the artefact of NAME@alias, NAME/version, a run or a folder; errors as Run.load has them."""
    folder = Path(ref)
    if (folder / MANIFEST).is_file():
        return load(folder)
    if os.sep in ref and folder.is_dir():
        raise InputError(f"--model {ref}: the folder holds no {MANIFEST}; give an artefact's folder, or a run")
    from training.runs import Run

    return Run.load(ref).artefact


def infer(model: str, data: Path, out: Path) -> Scored:
    """Score every row and write its probability.

    Parameters
    ----------
    model
        NAME@alias, NAME/version, run id or its beginning, or a folder.
    data
        Parquet file, or a folder of them, with the model's features as columns, mapped by name; null where missing.
    out
        Parquet file to write: the columns of :data:`KEPT` that the data has, spike_probability (float64), spike (bool).

    Returns
    -------
    Scored

    Raises
    ------
    InputError
        If the model is unknown, the data can't be read, holds no row or an infinite feature.
    ContractError, ArtefactError
        If the artefact doesn't verify, or the data lacks a feature.
    UsageError
        If ``out`` is the data itself.
    StoreError
        If ``out`` can't be written.
    """
    artefact = artefact_of(model)
    files = _files(data)
    if out.resolve() in [f.resolve() for f in files]:
        raise UsageError(f"--out {out} is the data itself; choose another file")
    features = artefact.manifest.features
    kept = _columns(files, features)
    temporary = out.with_name(f".{out.name}.{uuid.uuid4().hex[:8]}")
    took: list[float] = []
    singles: list[NDArray[np.float64]] = []
    rows = spikes = blank = 0
    total = sum(pq.ParquetFile(f).metadata.num_rows for f in files)
    if not total:
        raise InputError(f"--data {data} holds no row; give a file with features")
    every = max(1, total // SINGLES)
    began = time.perf_counter()
    writer: pq.ParquetWriter | None = None
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        artefact.predict_proba(np.full((1, len(features)), np.nan))  # loads the trees before threads share them
        for names, p, sampled, empty, seconds in _in_threads(artefact, _batches(files, features, kept), every):
            took.append(seconds)
            spike = p >= artefact.manifest.threshold
            singles.append(sampled)
            table = names.append_column("spike_probability", pa.array(p)).append_column("spike", pa.array(spike))
            # of a compacted part and a fresh one, one may promise that no value is missing
            table = pa.Table.from_arrays(table.columns, schema=pa.schema([f.with_nullable(True) for f in table.schema]))
            if writer is None:
                stamped = table.schema.with_metadata({"volspike.model": artefact.digest})
                writer = pq.ParquetWriter(temporary, stamped, compression="zstd", use_dictionary=_texts(table))
            writer.write_table(table.replace_schema_metadata({"volspike.model": artefact.digest}))
            rows += len(p)
            spikes += int(spike.sum())
            blank += empty
        assert writer is not None  # noqa: S101  # there is a row
        writer.close()
        os.replace(temporary, out)
    except OSError as error:
        raise StoreError(f"can't write {out}: {error.strerror or error}; free space, or give another --out") from error
    finally:
        with contextlib.suppress(NotADirectoryError):
            temporary.unlink(missing_ok=True)
    elapsed = time.perf_counter() - began
    latency = _singly(artefact, np.concatenate(singles)[:SINGLES])
    return Scored(
        rows,
        spikes,
        blank,
        rows / elapsed,
        latency,
        _quantiles(np.array(took)),
        artefact.manifest.kind,
        artefact.digest,
        str(out),
    )


def _files(data: Path) -> list[Path]:
    """Parquet files of a folder; of a table those that its log names, since others hold the same rows again."""
    if data.name == VIEW and (data / "_delta_log").is_dir():
        tables.require_whole(VIEW, root=data.parent)
        return [part.path for part in tables.parts(VIEW, root=data.parent)]
    files = [data]
    if data.is_dir():
        found = (f.relative_to(data) for f in sorted(data.glob("**/*.parquet")))
        files = [data / f for f in found if not any(part.startswith(("_", ".")) for part in f.parts)]
    if not files:
        raise InputError(f"--data {data} holds no .parquet file; give a file with features")
    return files


def _columns(files: list[Path], features: list[str]) -> list[str]:
    """Columns of :data:`KEPT` that all files have; every file must have the features."""
    kept = list(KEPT)
    types: dict[str, tuple[pa.DataType, Path]] = {}
    for file in files:
        try:
            schema = pq.read_schema(file)
        except (OSError, pa.ArrowException) as error:
            first = str(error).splitlines()[0][:200]
            raise InputError(f"--data {file}: {first}; must be a parquet file with the model's features") from error
        lacking = [name for name in features if name not in schema.names]
        if lacking:
            raise ContractError(
                f"--data {file} lacks {len(lacking)} of the model's {len(features)} features, such as {lacking[:5]}; "
                "give rows of spike_features"
            )
        twice = [name for name in dict.fromkeys([*features, *kept]) if schema.names.count(name) > 1]
        if twice:
            raise ContractError(
                f"--data {file} has several columns {twice[:5]}, must have one of each; leave out others"
            )
        wrong = [name for name in features if not _numeric(schema.field(name).type)]
        if wrong:
            raise ContractError(f"--data {file}: {wrong[:5]} must be numbers, were {schema.field(wrong[0]).type}")
        kept = [name for name in kept if name in schema.names]
        for name in kept:
            kind, other = types.setdefault(name, (schema.field(name).type, file))
            if schema.field(name).type != kind:
                raise ContractError(
                    f"--data {file}: {name} is {schema.field(name).type}, in {other.name} it is {kind}; must be of one "
                    "type in all files, cast it or leave it out"
                )
    return kept


def _batches(files: list[Path], features: list[str], kept: list[str]) -> Iterator[tuple[pa.Table, pa.RecordBatch]]:
    """Columns that name the rows, and features, a batch at a time."""
    columns = list(dict.fromkeys([*features, *kept]))
    for file in files:
        try:
            for read in pq.ParquetFile(file, memory_map=True).iter_batches(READ_ROWS, columns=columns):
                for start in range(0, read.num_rows, BATCH_ROWS):
                    batch = read.slice(start, BATCH_ROWS)
                    yield pa.Table.from_batches([batch.select(kept)]), batch.select(features)
        except (OSError, pa.ArrowException) as error:
            first = str(error).splitlines()[0][:200]
            raise InputError(f"--data {file}: {first}; the file is damaged, write it again") from error


def _in_threads(
    artefact: Artefact, batches: Iterator[tuple[pa.Table, pa.RecordBatch]], every: int
) -> Iterator[tuple[pa.Table, NDArray[np.float64], NDArray[np.float64], int, float]]:
    """Score batches on all cores, in their order: names, probabilities, some rows' features, blank rows, seconds."""

    def score(batch: pa.RecordBatch, skip: int) -> tuple[NDArray[np.float64], NDArray[np.float64], int, float]:
        x = _matrix(batch)
        began = time.perf_counter()
        p = artefact.predict_proba(x)
        seconds = time.perf_counter() - began
        return p, x[skip::every].copy(), _blank(x), seconds

    cores = os.cpu_count() or 1
    waiting: deque[tuple[pa.Table, Future[tuple[NDArray[np.float64], NDArray[np.float64], int, float]]]] = deque()
    rows = 0
    with ThreadPoolExecutor(cores) as pool:
        for names, batch in batches:
            waiting.append((names, pool.submit(score, batch, -rows % every)))
            rows += batch.num_rows
            if len(waiting) > 2 * cores:  # no more in memory than keeps every core busy
                ready, scored = waiting.popleft()
                yield (ready, *scored.result())
        while waiting:
            ready, scored = waiting.popleft()
            yield (ready, *scored.result())


def _matrix(batch: pa.RecordBatch) -> NDArray[np.float64]:
    """float64[n, f], NaN for null."""
    columns = pl.from_arrow(batch)
    assert isinstance(columns, pl.DataFrame)  # noqa: S101  # of a batch, never of an array
    return np.ascontiguousarray(columns.cast(pl.Float64).to_numpy(order="c"))


def _blank(x: NDArray[np.float64]) -> int:
    """Count the rows without any feature, looking at a further column only where all before it are missing."""
    rows = np.arange(len(x))
    for column in range(x.shape[1]):
        rows = rows[np.isnan(x[rows, column])]
        if not len(rows):
            break
    return len(rows)


def _singly(artefact: Artefact, x: NDArray[np.float64]) -> dict[str, float]:
    artefact.predict_proba(x[:1])
    took = np.empty(len(x))
    for i in range(len(x)):
        began = time.perf_counter()
        artefact.predict_proba(x[i : i + 1])
        took[i] = time.perf_counter() - began
    return _quantiles(took)


def _quantiles(seconds: NDArray[np.float64]) -> dict[str, float]:
    ms = seconds * 1000
    return {**{f"p{q}": float(np.percentile(ms, q)) for q in QUANTILES}, "max": float(ms.max())}


def _numeric(kind: pa.DataType) -> bool:
    return bool(pa.types.is_floating(kind) or pa.types.is_integer(kind) or pa.types.is_boolean(kind))


def _texts(table: pa.Table) -> list[str]:
    return [
        field.name for field in table.schema if pa.types.is_string(field.type) or pa.types.is_large_string(field.type)
    ]

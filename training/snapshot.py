"""The tables as they stood when a run was trained, laid out in a folder of their own.

Parts that are still there, byte for byte, are linked; where a compaction has rewritten them, the rows are taken out of
the table as it is now, by the last message number and time that the data manifest names.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from deltalake.transaction import AddAction

from feature_repo.errors import InputError, StoreError
from infra.settings import settings
from ingestion import tables

Said = dict[str, Any]


def restore(data: Said, root: Path) -> list[str]:
    """Lay the tables out under ``root`` as a data manifest describes them.

    Parameters
    ----------
    data
        As :func:`training.provenance.data_manifest` gives it.
    root
        Folder for the tables; on the disk of the tables, links cost nothing.

    Returns
    -------
    list of str
        Which tables had to be put together from parts that were rewritten since.

    Raises
    ------
    InputError
        If the manifest names no parts.
    StoreError
        If rows that the run was trained on are gone.
    """
    notes = []
    for name, said in data.items():
        if not isinstance(said, dict) or not {"parts", "last_n", "ranges"} <= set(said):
            raise InputError(f"data manifest of {name} has no parts, last_n and ranges; train the model again")
        gone = [p["path"] for p in said["parts"] if not _same(settings().tables / p["path"], p["sha256"])]
        if gone:
            _extract(name, said, root, gone)
            notes.append(f"{name}: {len(gone)} of {len(said['parts'])} parts were rewritten since; its rows were taken")
        else:
            _link(name, said, root)
    return notes


def _same(path: Path, sha256: str) -> bool:
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest() == sha256


def _versions(said: Said) -> dict[tuple[str, str], int]:
    return {(key.split("/", 1)[0], key.split("/", 1)[1]): int(n) for key, n in said["last_n"].items()}


def _link(name: str, said: Said, root: Path) -> None:
    folder = root / name
    tables.open_to_write(name, folder)
    for part in said["parts"]:
        source = settings().tables / part["path"]
        target = folder / Path(part["path"]).relative_to(name)
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            os.link(source, target)
        except OSError:
            shutil.copy2(source, target)
        path = target.relative_to(folder).as_posix()
        stats = f'{{"numRecords": {int(part["rows"])}}}'
        add = AddAction(path, target.stat().st_size, {}, int(target.stat().st_mtime * 1000), True, stats)
        last = _versions(said) if part is said["parts"][-1] else {}
        tables.commit_part(tables.open_to_write(name, folder), name, folder, add, last)


def _extract(name: str, said: Said, root: Path, gone: list[str]) -> None:
    versions = _versions(said)
    keys = pl.DataFrame(
        [
            (*key.split("/", 1), int(span[1]), versions[key.split("/", 1)[0], key.split("/", 1)[1]])
            for key, span in said["ranges"].items()
        ],
        schema={"session": pl.String, "product_id": pl.String, "last_ns": pl.Int64, "last_n": pl.Int64},
        orient="row",
    )
    rows = tables.collect(
        name,
        tables.scan(name)
        .join(keys.lazy(), on=["session", "product_id"], how="inner")
        .filter((pl.col("event_time_ns") <= pl.col("last_ns")) & (pl.col("n") <= pl.col("last_n")))
        .drop("last_ns", "last_n"),
    )
    expected = sum(int(p["rows"]) for p in said["parts"])
    if rows.height != expected:
        raise StoreError(
            f"table {name}: {len(gone)} parts of the run are gone, such as {gone[0]}, and {rows.height} of its "
            f"{expected} rows are in the table now, must be all; replay the tapes into the tables again"
        )
    arrow = rows.to_arrow().select(tables.schema(name).names).cast(tables.schema(name))
    tables.append(name, arrow, np.asarray(rows["n"].to_numpy()), versions, root=root)

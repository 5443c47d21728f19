"""Train what an order file says, into this process's data folder: the fresh half of :mod:`training.reproduce`.

Run as ``python -m training.remake ORDER OUT`` with the data folder, its tables and MLflow set by the environment.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import msgspec
import numpy as np

from training.options import TrainOptions
from training.runs import Run, rebuild
from training.train import train


def remake(order: Path, out: Path) -> None:
    """Train and leave ``answer.json`` (run_id) and ``x.npy`` (features of train and validation, float64[n, f]).

    Parameters
    ----------
    order
        JSON with options (of :class:`TrainOptions`), products (that the model is for) and features.
    out
        Folder to make.
    """
    from feature_repo.store import apply
    from infra.settings import settings

    said = json.loads(order.read_bytes())
    apply()
    # what the audit thinks of it is on the run's record; here it is only made again
    report = train(msgspec.convert(said["options"], TrainOptions), override="reproduction")
    fits = [m for m in report.models if not m.product or [m.product] == said["products"]]
    run = Run.load(settings().models / fits[0].run_id)
    data = rebuild(run)
    mine = data.frame["product_id"].is_in(said["products"]).to_numpy()
    columns = [data.column(name) for name in said["features"]]
    out.mkdir()
    np.save(out / "x.npy", np.ascontiguousarray(data.x[mine][:, columns]))
    (out / "answer.json").write_text(json.dumps({"run_id": fits[0].run_id}), encoding="utf-8")


if __name__ == "__main__":
    remake(Path(sys.argv[1]), Path(sys.argv[2]))

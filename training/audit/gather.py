"""From a run in MLflow to the evidence that an audit looks at."""

from __future__ import annotations

from typing import TYPE_CHECKING

import polars as pl

from infra.settings import settings
from ingestion import tables
from training.artefact import Artefact
from training.audit.evidence import KEYS, Evidence

if TYPE_CHECKING:
    from training.datasets import Dataset
    from training.options import TrainOptions
    from training.runs import Run


def gather(run: str | Run) -> Evidence:
    """Make what a run learned from anew, out of the tables as they are now.

    The sealed block is left out: neither its labels nor its features are read.

    Parameters
    ----------
    run
        The run, or what :meth:`training.runs.Run.load` takes.

    Raises
    ------
    InputError
        If there is no such run.
    """
    from training.runs import Run, rebuild

    loaded = Run.load(run) if isinstance(run, str) else run
    return describe(rebuild(loaded), loaded.artefact, loaded.options, run_id=loaded.run_id)


def describe(data: Dataset, artefact: Artefact, options: TrainOptions, *, run_id: str = "") -> Evidence:
    """Put beside a training set and a model the tables that they came from.

    Parameters
    ----------
    data
        Rows and features as the model got them; rows of the test block are left out.
    artefact
        The model.
    options
        What training was told.
    run_id
        The run, if it has one yet.
    """
    mine = data.frame["product_id"].is_in(artefact.manifest.training.products)
    shown = data.frame["block"].is_in(["train", "validation"]) & mine
    rows = data.frame.filter(shown)
    products = rows["product_id"].unique().to_list()
    # a rolling tau knows sessions that have no row left in the run
    sessions = sorted({*rows["session"].unique(), *artefact.manifest.training.sessions})
    here = pl.col("product_id").is_in(products) & pl.col("session").is_in(sessions)
    columns = [*KEYS, "trigger", "row_time", "event_time_ns", "created_timestamp", "coverage_s"]
    columns += [name for name in data.features if name not in columns]
    return Evidence(
        rows=rows,
        x=data.x[shown.to_numpy()],
        features=tuple(data.features),
        artefact=artefact,
        quotes=tables.collect("quotes", tables.scan("quotes").filter(here)),
        table=tables.collect(
            "spike_features",
            tables.scan("spike_features").filter(here & (pl.col("trigger") == "grid")).select(columns),
        ),
        tapes=tuple(sorted(settings().raw.rglob("*"))) if settings().raw.is_dir() else (),
        objective=options.objective,
        returns=artefact.manifest.label.returns,
        by_session=options.each_session or bool(options.train_sessions),
        run_id=run_id,
    )

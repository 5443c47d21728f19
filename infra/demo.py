"""The whole job by itself, once: tape → tables → Feast → models → champion → forecasts over HTTP → drift report.

Nothing here is special to the demonstration but the generated tape and the ``--force "demo"`` that is said openly: each
step calls what the command of its name calls. Only data of its own sessions is trained on, so it can run beside other
data; run again, its tape adds no rows.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from feature_repo.contract import FEATURE_NAMES
from feature_repo.errors import InsufficientDataError, SealedError, StoreError
from infra.service_child import service
from infra.settings import ROOT, child_environment, settings

if TYPE_CHECKING:
    from infra.up import Outcome as Live
    from ingestion.replay import Summary
    from training.evaluation import Evaluation
    from training.train import TrainReport

SEED = 7
SECONDS = 4 * 3600
"""Length of the generated tape: long enough for a purged split of three blocks."""
LIVE_SPEED = 90.0
LIVE_S = 18.0
"""How long the live system is shown: at that speed long enough for windows of 900 s to fill."""
LIVE_AGO_S = LIVE_SPEED * (LIVE_S + 10)
"""How long before now that stretch begins: none of its rows may be newer than those of a feed that comes after it."""
T = TypeVar("T")


@dataclass(slots=True)
class Outcome:
    """What the demonstration made; members stay empty from where it had to stop.

    Attributes
    ----------
    generated
        Whether the tape was generated.
    refusal
        Why it went no further, where it did not.
    sealed
        Why the sealed block gave no figures, where it did not.
    forced
        The gate's objections that ``--force "demo"`` overrode.
    """

    generated: bool
    replayed: Summary | None = None
    trained: TrainReport | None = None
    evaluated: Evaluation | None = None
    sealed: str = ""
    champion: str = ""
    forced: str = ""
    answers: list[dict[str, Any]] = field(default_factory=list)
    drift_page: str = ""
    live: Live | None = None
    refusal: str = ""
    seconds: float = 0.0


class Steps:
    """Prints each step with what came of it and how long it took."""

    def __init__(self, total: int) -> None:
        self._total = total
        self._done = 0

    def do(self, name: str, work: Callable[[], T], said: Callable[[T], str], *, talks: bool = False) -> T:
        """Do one step and print its line; two, if the work ``talks`` itself."""
        self._done += 1
        began = time.perf_counter()
        label = f"[{self._done:>2}/{self._total}] {name:<13}"
        print(label, end="\n" if talks else "", flush=True)
        try:
            result = work()
        except BaseException:
            print("stopped", flush=True)
            raise
        print(f"{' ' * len(label) if talks else ''}{said(result):<78}{time.perf_counter() - began:6.1f} s", flush=True)
        return result


def run(tapes: Sequence[Path] = (), *, keep: bool = False) -> Outcome:
    """Run the demonstration.

    Parameters
    ----------
    tapes
        Tapes to use; none generates one.
    keep
        Keep the service and its Redis running until Ctrl-C.

    Returns
    -------
    Outcome

    Raises
    ------
    InputError, StoreError
        If a tape or a store can't be used at all.
    """
    from infra.embedded import ensure_redis

    began = time.perf_counter()
    outcome = Outcome(generated=not tapes)
    steps = Steps(10 if tapes else 11)
    os.environ["VOLSPIKE_CLOCK"] = "stream"
    settings.cache_clear()
    with ExitStack() as stack:
        stack.enter_context(ensure_redis())  # first, so that a port that is taken is told before the work
        files = list(tapes) or [
            steps.do("market", _market, lambda p: f"{p.name}, generated: no evidence about a market")
        ]
        if tapes:
            steps.do("tapes", lambda: None, lambda _: ", ".join(p.name for p in tapes))
        outcome.replayed = steps.do("replay", lambda: _replay(files), _said_replay)
        steps.do("feast apply", _apply, lambda _: f"1 view of {len(FEATURE_NAMES)} features, 4 services")
        url = ""
        try:
            outcome.trained = steps.do("train", lambda: _train(outcome), _said_train)
            steps.do("evaluate", lambda: _evaluate(outcome), lambda text: text)
            steps.do("promote", lambda: _promote(outcome), lambda text: text)
        except InsufficientDataError as error:
            outcome.refusal = str(error)
        steps.do("materialize", _materialize, lambda rows: f"newest row of {len(rows)} products in Redis")
        if outcome.trained is not None:
            url = steps.do("service", lambda: stack.enter_context(_service()), lambda at: f"bentoml serve at {at}")
            products = sorted(outcome.trained.tau)
            outcome.answers = steps.do("predict", lambda: _ask(url, products), _said_answers)
        try:
            outcome.drift_page = steps.do(
                "drift", lambda: _drift(outcome), lambda page: f"early against late: {Path(page).name}"
            )
        except InsufficientDataError as error:
            outcome.refusal = outcome.refusal or str(error)
        if outcome.generated:
            outcome.live = steps.do("live", lambda: _live(url), _said_live, talks=True)
        outcome.seconds = time.perf_counter() - began
        show(outcome, kept=keep and bool(url))
        if keep and url:
            print(f"the service stays at {url} until Ctrl-C", flush=True)
            _until_interrupted()
    return outcome


def _market() -> Path:
    """Generate the tape on one core while the other compiles the kernel."""
    from ingestion.kernel.warm import warm_up
    from ingestion.market import PRODUCTS, tape_name

    folder = settings().data / "raw"
    path = folder / tape_name(SEED, SECONDS, PRODUCTS)
    maker = None
    if not path.exists():
        command = [sys.executable, "-m", "ingestion.market", "--seed", str(SEED), "--seconds", str(SECONDS)]
        maker = subprocess.Popen(
            [*command, "--out", str(path)],
            cwd=ROOT,
            env=child_environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
    warm_up()
    if maker is not None:
        _, said = maker.communicate()
        if maker.returncode:
            raise StoreError(f"{path} could not be generated: {said.decode().strip().splitlines()[-1:]}")
    return path


def _replay(files: Sequence[Path]) -> Summary:
    from ingestion.replay import replay

    return replay(files)


def _said_replay(summary: Summary) -> str:
    types = sum(n for k, n in summary.counts.items() if k in ("ticker", "match", "l2update", "l2_data", "heartbeat"))
    new = "" if summary.rows_added == summary.rows else f" ({summary.rows_added:,} new)"
    return f"{types:,} messages → {summary.rows:,} rows{new}, {summary.quotes:,} quotes"


def _apply() -> None:
    from feature_repo.store import apply

    apply()


def _train(outcome: Outcome) -> TrainReport:
    from training.options import TrainOptions
    from training.train import train

    assert outcome.replayed is not None  # noqa: S101 - the step before
    return train(TrainOptions(sessions=tuple(dict.fromkeys(outcome.replayed.sessions))))


def _said_train(report: TrainReport) -> str:
    rows = sum(block["rows"] for block in report.blocks.values())
    return f"{len(report.models)} models on {rows:,} rows × {report.features} features, logged to MLflow"


def _evaluate(outcome: Outcome) -> str:
    """Open the sealed block for the model that validation chose; another run on this data finds it opened."""
    from training.evaluate import evaluate

    assert outcome.trained is not None  # noqa: S101 - the step before
    try:
        outcome.evaluated = evaluate(outcome.trained.best.run_id, final=True)
    except SealedError as error:
        outcome.sealed = str(error)
        return "the sealed block was opened by an earlier run, and opens once"
    rows, pr_auc = outcome.evaluated.pooled["rows"], outcome.evaluated.pooled["pr_auc"]
    shown = "undefined" if pr_auc is None else f"{pr_auc:.3f}"
    return f"sealed block of {rows:,.0f} rows opened for {outcome.evaluated.kind}, once: PR-AUC {shown}"


def _promote(outcome: Outcome) -> str:
    from training.promotion import promote

    assert outcome.trained is not None  # noqa: S101 - the step before
    best = outcome.trained.best
    deployed = promote(best.run_id, force="demo")
    outcome.forced = "; ".join(deployed.overridden)
    outcome.champion = f"{best.kind}, version {deployed.version}"
    return outcome.champion + (', by --force "demo"' if outcome.forced else "")


def _materialize() -> dict[str, Any]:
    from ingestion.online import materialize

    return dict(materialize())


@contextmanager
def _service() -> Iterator[str]:
    """Run ``bentoml serve`` as a newcomer would."""
    with service() as started:
        started.wait_ready()
        yield started.url


def _ask(url: str, products: Sequence[str]) -> list[dict[str, Any]]:
    answers = []
    for product in products:
        body = json.dumps({"product_id": product}).encode()
        request = urllib.request.Request(  # noqa: S310 - our own loopback address
            f"{url}/predict", body, {"content-type": "application/json"}
        )
        try:
            with urllib.request.urlopen(request, timeout=10) as answer:  # noqa: S310
                answers.append(json.load(answer))
        except urllib.error.HTTPError as error:
            answers.append({"product_id": product, **json.load(error)})
    return answers


def _said_answers(answers: list[dict[str, Any]]) -> str:
    return ", ".join(f"{a['product_id']} {a['status']}" for a in answers)


def _drift(outcome: Outcome) -> str:
    import polars as pl

    from monitoring import drift, drift_inputs

    assert outcome.replayed is not None  # noqa: S101 - an earlier step
    rows = drift_inputs.rows([], trigger="grid", min_coverage_s=None)
    if "session" in rows.columns:
        rows = rows.filter(pl.col("session").is_in(outcome.replayed.sessions))
    early, late = drift_inputs.halves(rows)
    return drift.report(early, late, out=settings().reports, name="drift-early-late").groups[0].html


def _live(url: str) -> Live:
    """Show a short stretch of the live system, much faster than the world, with the service that runs."""
    from infra.up import Order, up

    return up(Order(speed=LIVE_SPEED, ago_s=LIVE_AGO_S, seconds=LIVE_S, service=url), quiet=True)


def _said_live(live: Live) -> str:
    told = ", ".join(
        f"{line.product_id} {line.status if line.probability is None else format(line.probability, '.3f')}"
        for line in live.lines
    )
    return f"{live.ingest.get('messages', 0):,} messages → Kafka → {live.featurize.get('rows', 0):,} rows → {told}"


def _until_interrupted() -> None:
    try:
        while True:
            time.sleep(3600)
    except KeyboardInterrupt:
        print("stopping")


def show(outcome: Outcome, *, kept: bool = False) -> None:
    """Print the summary: what was made and where, the models, the forecasts, what to try next; ``kept``: it goes on."""
    from infra.tables_view import table

    print()
    report = outcome.trained
    if report is not None:
        names = ("pr_auc", "prevalence", "roc_auc", "f1", "precision", "recall")
        rows = []
        for model in report.models:
            chosen = " ◄ champion" if outcome.champion.startswith(model.kind) else ""
            for block in ("folds", "validation"):
                if block in model.metrics:
                    rows.append([model.kind + chosen, block, *(model.metrics[block][name] for name in names)])
            if outcome.evaluated is not None and outcome.evaluated.run_id == model.run_id:
                rows.append([model.kind + chosen, "sealed", *(outcome.evaluated.pooled[name] for name in names)])
        header = ["model", "rows", "PR-AUC", "prevalence", "ROC-AUC", "F1", "precision", "recall"]
        table("models: on purged folds of train, on validation that chose, on the sealed block", header, rows)
        if outcome.sealed:
            print(f"No figures of the sealed block: {outcome.sealed}.")
        for warning in outcome.evaluated.warnings if outcome.evaluated is not None else ():
            print(warning)
        counts = {name: block.get("episodes") for name, block in report.blocks.items()}
        if outcome.evaluated is not None:
            counts["test"] = int(outcome.evaluated.pooled["episodes"] or 0)
        blocks = ", ".join(
            f"{name} {b['rows']:,} rows" + ("" if counts[name] is None else f" with {counts[name]} spike episodes")
            for name, b in report.blocks.items()
        )
        print(f"{blocks}; {report.lost:,} rows purged between them")
    if outcome.forced:
        print(f'The gate refused: {outcome.forced}. It was overridden by --force "demo", which is on record.')
    if outcome.answers:
        print()
        table(
            "forecasts, POST /predict",
            ["product", "P(spike in 60 s)", "spike", "tau", "event time", "status"],
            [
                [
                    a["product_id"],
                    a.get("spike_probability"),
                    {True: "yes", False: "no"}.get(a.get("spike", ""), "–"),
                    a.get("tau"),
                    a.get("event_time"),
                    a["status"],
                ]
                for a in outcome.answers
            ],
        )
    for reason in report.refused.values() if report is not None else ():
        print(f"left out: {reason}")
    if outcome.refusal:
        print(f"\nNo further than this, and rightly so: {outcome.refusal}")
    print("\nmade")
    print(f"  tables and models   {_short(settings().data)}")
    if outcome.replayed is not None and outcome.replayed.dead_letters:
        print(f"  rejected messages   {_short(Path(outcome.replayed.dead_letters))}")
    if report is not None:
        print(f"  runs and registry   {settings().mlflow_uri.replace(str(ROOT) + '/', '')}")
    if outcome.evaluated is not None:
        print(f"  evaluation          {_short(Path(outcome.evaluated.report))}")
    if outcome.drift_page:
        print(f"  drift report        {_short(Path(outcome.drift_page))}")
    print("next, with .venv/bin on the PATH")
    if report is not None:
        print("  mlflow ui                      the runs, their curves and their artefacts")
        print("  VOLSPIKE_CLOCK=stream bentoml serve      the champion over HTTP, on the tape's own time")
    print("  volspike replay --raw FILE     your own recording into the tables, then: volspike train")
    if outcome.generated:
        print("The market was generated: these figures show that the parts fit, and nothing about any market.")
    print(f"done in {outcome.seconds:.0f} s" + ("" if kept else "; nothing is left running"))


def _short(path: Path) -> str:
    try:
        return str(path.relative_to(ROOT))
    except ValueError:
        return str(path)

"""Run the scripts of ``tests/benchmarks``, each in a process of its own, and judge their figures by their targets.

A script ``bench_<name>.py`` has ``run(**arguments) -> list[dict]``; a dict has ``metric``, ``value``, ``unit`` and,
where there is one, ``target``, ``op`` (``>=`` or ``<=``) and ``versus`` (the other side's figure of the same run).
``QUICK``, a dict, holds the arguments of a small run.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any, Final

from feature_repo.errors import UsageError, VolspikeError
from infra.settings import ROOT

FOLDER = ROOT / "tests" / "benchmarks"
ONE_THREAD: Final = dict.fromkeys(
    (
        "ARROW_NUM_THREADS",
        "ARROW_IO_THREADS",
        "POLARS_MAX_THREADS",
        "OMP_NUM_THREADS",
        "OPENBLAS_NUM_THREADS",
        "MKL_NUM_THREADS",
        "NUMBA_NUM_THREADS",
    ),
    "1",
)
"""What makes one worker one thread; read by the libraries when they are imported, so set for a new process."""
_HOLDS: Final = {">=": lambda value, target: value >= target, "<=": lambda value, target: value <= target}


def names() -> list[str]:
    """Names of the benchmarks there are."""
    return sorted(path.stem.removeprefix("bench_").replace("_", "-") for path in FOLDER.glob("bench_*.py"))


def measure(name: str, *, quick: bool = False) -> dict[str, Any]:
    """Run one benchmark in a process of its own.

    Returns
    -------
    dict
        ``bench``, ``machine`` and ``results``; of each: metric, value, unit, target, op, holds, versus (null where it
        has none).

    Raises
    ------
    VolspikeError
        If the script fails; what it printed is on standard error.
    """
    script = FOLDER / f"bench_{name.replace('-', '_')}.py"
    command = [sys.executable, "-m", "infra.benches", str(script), *(["--quick"] if quick else [])]
    run = subprocess.run(command, cwd=ROOT, env={**os.environ, **ONE_THREAD}, stdout=subprocess.PIPE, check=False)
    if run.returncode:
        raise VolspikeError(f"benchmark {name} failed with exit code {run.returncode}: see what it printed above")
    results: list[dict[str, Any]] = json.loads(run.stdout)
    return {"bench": name, "machine": machine(), "results": [judged(result) for result in results]}


def judged(result: dict[str, Any]) -> dict[str, Any]:
    """Complete a script's figure: the missing keys null, and whether its target holds.

    Examples
    --------
    >>> judged({"metric": "rate", "value": 2.0, "unit": "1/s", "target": 1.0, "op": ">="})["holds"]
    True
    >>> judged({"metric": "rate", "value": 2.0, "unit": "1/s"})["holds"] is None
    True
    """
    target, op = result.get("target"), result.get("op")
    holds = None if target is None else bool(_HOLDS[op or ">="](result["value"], target))
    return {
        **{key: result.get(key) for key in ("metric", "value", "unit", "target", "op")},
        "holds": holds,
        "versus": result.get("versus"),
    }


def machine() -> dict[str, Any]:
    """What the figures were measured on."""
    model = platform.processor()
    with contextlib.suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        model = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), model)
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return {
        "cpu": model,
        "cores": os.cpu_count(),
        "memory_gb": round(memory, 1),
        "system": platform.platform(terse=True),
        "python": platform.python_version(),
    }


def table(report: dict[str, Any]) -> str:
    """Lay a report out for reading."""
    rows = [("metric", "value", "unit", "target", "", "versus")]
    for r in report["results"]:
        target = "" if r["target"] is None else f"{r['op']} {_short(r['target'])}"
        verdict = {True: "holds", False: "MISSED", None: ""}[r["holds"]]
        rows.append((r["metric"], _short(r["value"]), r["unit"], target, verdict, _short(r["versus"])))
    widths = [max(len(row[i]) for row in rows) for i in range(6)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    where = report["machine"]
    head = f"{report['bench']}: {where['cpu']}, {where['cores']} cores, {where['system']}, Python {where['python']}"
    return "\n".join([head, *lines])


def _short(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, float | int) and not isinstance(value, bool):
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
    return str(value)


def _run(path: Path, *, quick: bool) -> list[dict[str, Any]]:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None:
        raise UsageError(f"{path} can't be loaded as a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module
    spec.loader.exec_module(module)
    results: list[dict[str, Any]] = module.run(**(getattr(module, "QUICK", {}) if quick else {}))
    return results


if __name__ == "__main__":
    with contextlib.redirect_stdout(sys.stderr):  # standard output carries the figures and nothing else
        found = _run(Path(sys.argv[1]), quick="--quick" in sys.argv)
    print(json.dumps(found))

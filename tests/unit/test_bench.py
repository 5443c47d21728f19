"""``volspike bench``: figures judged by their targets, one thread, and an exit code that tells."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from infra import benches, cli

SCRIPT = """
import os
QUICK = {"value": 0.5}
def run(value=3.0):
    print("progress that must not spoil the JSON")
    threads = [float(os.environ[f"{x}_NUM_THREADS"]) for x in ("ARROW", "OMP", "NUMBA")]
    return [
        {"metric": "rate", "value": value, "unit": "1/s", "target": 2.0, "op": ">=", "versus": 0.25},
        {"metric": "threads", "value": max(*threads, float(os.environ["POLARS_MAX_THREADS"])), "unit": "1"},
    ]
"""


@pytest.fixture
def scripts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of benchmarks in the place of the real ones."""
    (tmp_path / "bench_fast.py").write_text(SCRIPT)
    monkeypatch.setattr(benches, "FOLDER", tmp_path)
    return tmp_path


def run(*args: str) -> int:
    with pytest.raises(SystemExit) as end:
        cli.main(["bench", *args])
    assert isinstance(end.value.code, int)
    return end.value.code


def test_report_has_the_agreed_form(scripts: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("fast", "--json") == 0
    report = json.loads(capsys.readouterr().out)
    assert set(report) == {"bench", "machine", "results"}
    assert report["bench"] == "fast"
    assert report["results"] == [
        {"metric": "rate", "value": 3.0, "unit": "1/s", "target": 2.0, "op": ">=", "holds": True, "versus": 0.25},
        {"metric": "threads", "value": 1.0, "unit": "1", "target": None, "op": None, "holds": None, "versus": None},
    ]


def test_missed_target_exits_1_and_is_shown(scripts: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (scripts / "bench_fast.py").write_text(SCRIPT.replace("value=3.0", "value=1.0"))
    assert run("fast") == 1
    assert "MISSED" in capsys.readouterr().out


def test_targets_do_not_count_in_a_quick_run(scripts: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("fast", "--quick", "--json") == 0
    assert json.loads(capsys.readouterr().out)["results"][0]["value"] == 0.5


@pytest.mark.parametrize(
    ("op", "value", "holds"), [(">=", 2.0, True), (">=", 1.999, False), ("<=", 2.0, True), ("<=", 2.001, False)]
)
def test_target_is_inclusive(op: str, value: float, holds: bool) -> None:
    assert benches.judged({"metric": "m", "value": value, "unit": "s", "target": 2.0, "op": op})["holds"] is holds


def test_not_a_number_never_holds() -> None:
    for op in (">=", "<="):
        result = {"metric": "m", "value": float("nan"), "unit": "s", "target": 2.0, "op": op}
        assert benches.judged(result)["holds"] is False


def test_unknown_name_lists_the_known(scripts: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("slow") == 2
    assert "fast" in capsys.readouterr().err
    assert run() == 0
    assert capsys.readouterr().out == "fast\n"


def test_failing_script_is_an_error(scripts: Path) -> None:
    (scripts / "bench_fast.py").write_text("def run():\n    raise OSError('disk')\n")
    assert run("fast") == 1

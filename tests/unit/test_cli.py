"""The command line: exit codes, help and its speed, whatever the number of commands."""

from __future__ import annotations

import resource
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import infra.commands
from infra import cli
from infra.settings import ROOT

COMMAND = '''
import typer
from feature_repo import errors
def command(how: str = typer.Option("done", help="What to do.")) -> int | None:
    """Do as told.

    Example:
        volspike demo --how done
        volspike demo --how no
    """
    match how:
        case "no": return 1
        case "exit": raise typer.Exit(1)
        case "interrupt": raise KeyboardInterrupt
        case "bug": raise ZeroDivisionError
        case "done": return None
        case kind: raise getattr(errors, kind)("pair was 'X': give BTC-USD")
'''


@pytest.fixture
def commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder of commands in the place of the real ones."""
    monkeypatch.setattr(infra.commands, "__path__", [str(tmp_path)])
    real = {name: sys.modules.pop(name) for name in list(sys.modules) if name.startswith("infra.commands.")}
    (tmp_path / "demo.py").write_text(COMMAND)
    yield tmp_path
    for name in [name for name in sys.modules if name.startswith("infra.commands.")]:
        del sys.modules[name]
    sys.modules.update(real)


def code_of(*args: str) -> int:
    with pytest.raises(SystemExit) as end:
        cli.main(list(args))
    assert isinstance(end.value.code, int)
    return end.value.code


@pytest.mark.parametrize("number", [0, 1, 2])
def test_help_with_any_number_of_commands(
    number: int, commands: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (commands / "demo.py").unlink()
    for name in ("demo", "replay")[:number]:
        (commands / f"{name}.py").write_text(COMMAND)
    assert code_of("--help") == 0
    shown = capsys.readouterr().out
    assert [name in shown for name in ("demo", "replay")] == [number > 0, number > 1]


@pytest.mark.parametrize(
    ("how", "code"),
    [
        ("done", 0),
        ("no", 1),
        ("exit", 1),
        ("StoreError", 1),
        ("PromotionRefused", 1),
        ("UsageError", 2),
        ("interrupt", 130),
    ],
)
def test_exit_codes(how: str, code: int, commands: Path) -> None:
    assert code_of("demo", "--how", how) == code


@pytest.mark.parametrize("args", [["demo", "--nonsense"], ["nonsense"], ["demo", "--how"], []])
def test_wrong_call_exits_2_and_says_why(
    args: list[str], commands: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert code_of(*args) == 2
    out, err = capsys.readouterr()
    assert ("Usage: volspike" in err or "Error: " in err) and not out


def test_our_errors_are_one_line_on_standard_error(commands: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert code_of("demo", "--how", "InputError") == 1
    assert capsys.readouterr() == ("", "volspike: pair was 'X': give BTC-USD\n")


def test_a_bug_is_not_hidden(commands: Path) -> None:
    with pytest.raises(ZeroDivisionError):
        cli.main(["demo", "--how", "bug"])


def test_examples_keep_their_lines(commands: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert code_of("demo", "--help") == 0
    assert "    volspike demo --how done\n" in capsys.readouterr().out


def test_every_command_has_a_help_with_an_example(capsys: pytest.CaptureFixture[str]) -> None:
    names = [c.name for c in cli.build().registered_commands]
    for name in names:
        assert name is not None
        assert code_of(name, "--help") == 0
        usage, _, rest = " ".join(capsys.readouterr().out.split()).partition("Usage:")[2].partition("[OPTIONS]")
        assert f"volspike {name}" in usage and f"volspike {name}" in rest, f"{name} has no example in its help"


def test_help_takes_half_a_second_of_processor_time() -> None:
    """Least of three. ``volspike bench start`` measures the wall clock, on a machine that does nothing else."""

    def seconds() -> float:
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        run = subprocess.run(
            [sys.executable, "-m", "infra.cli", "--help"], cwd=ROOT, capture_output=True, text=True, check=True
        )
        assert "Usage: volspike" in run.stdout
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime

    assert min(seconds() for _ in range(3)) <= 0.5

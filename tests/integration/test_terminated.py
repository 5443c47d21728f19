"""SIGTERM ends a command in order: what it started is ended too."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from infra import services
from infra.settings import ROOT

SCRIPT = """
import sys, threading
import typer
from infra import cli
from infra.children import running

app = typer.Typer()

@app.command()
def wait() -> None:
    with running("sleeper", [sys.executable, "-c", "import threading; threading.Event().wait()"]) as child:
        print(child.pid, flush=True)
        threading.Event().wait()

cli.build = lambda: app
cli.main([])
"""


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGTERM to send")
def test_children_of_a_terminated_command_are_ended(data_dir: Path, until: Callable[..., bool]) -> None:
    with subprocess.Popen([sys.executable, "-c", SCRIPT], cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        child = int(process.stdout.readline())
        assert services.alive(child)
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 128 + signal.SIGTERM
    assert until(lambda: not services.alive(child), 30, 0.1)

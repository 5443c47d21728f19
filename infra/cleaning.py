"""What ``volspike clean`` may remove: what lies in the data folder, and nothing where that folder isn't one of ours."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Final

from feature_repo.errors import StoreError, UsageError
from infra import services
from infra.settings import ROOT, settings

TAPES: Final = "raw"
_FOREIGN: Final = (".git", ".hg", "pyproject.toml", "package.json", ".ssh", ".bashrc", ".zshrc")
"""Signs that a folder is somebody's project or home, whatever VOLSPIKE_DATA says."""


def found(*, tapes: bool, mlflow: bool) -> list[Path]:
    """Files and folders to remove, sorted.

    Raises
    ------
    UsageError
        If the data folder holds the repository, a home or another project.
    StoreError
        If a service still writes there.
    """
    data = settings().data
    real = data.resolve()
    if real == Path.home().resolve() or real in (ROOT, *ROOT.parents) or real == Path(real.anchor):
        raise UsageError(f"VOLSPIKE_DATA is {data}, which holds more than our data: clean removes nothing there")
    foreign = [name for name in _FOREIGN if (data / name).exists()]
    if foreign:
        raise UsageError(f"VOLSPIKE_DATA is {data}, which holds {foreign[0]}: that is not ours, clean removes nothing")
    running = services.running(settings().run)
    if running:
        raise StoreError(
            f"{running[0].name} (pid {running[0].pid}) still writes to {data}: stop it first, then run clean again"
        )
    there = [path for path in data.iterdir() if tapes or path.name != TAPES] if data.is_dir() else []
    if mlflow:
        there += [*ROOT.glob("mlflow.db*"), *ROOT.glob("mlartifacts")]
    return sorted(there)


def remove(path: Path) -> None:
    """Remove a file, a folder, or a link (never what a link points at)."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)

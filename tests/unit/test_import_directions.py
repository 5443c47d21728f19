"""Who may import whom, and what a cold start may not import."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from infra.settings import ROOT

HOUSE = ("infra.settings", "infra.logs", "infra.imports")  # these import nothing of ours
ROOMS = {
    "infra.settings": (),
    "infra.logs": (),
    "infra.imports": (),
    "feature_repo": ("feature_repo", *HOUSE),
    "ingestion.kernel": ("ingestion.kernel", "feature_repo.contract", "feature_repo.errors", "feature_repo.names"),
    "ingestion": ("ingestion", "feature_repo", *HOUSE),
    "training": ("training", "feature_repo", "ingestion.kernel", "ingestion.tables", *HOUSE),
    "training.audit": ("training", "feature_repo", "ingestion.kernel", "ingestion.tables", "ingestion.tapes", *HOUSE),
    "serving": ("serving", "feature_repo", "training.artefact", *HOUSE),
    "monitoring": (
        "monitoring",
        "feature_repo",
        "ingestion.kernel",
        "ingestion.tables",
        "training.artefact",
        *HOUSE,
    ),
    "infra": ("infra", "feature_repo", "ingestion", "training", "serving", "monitoring"),
}
"""Room, or part of one, and what it may import. The longest name that fits a module is its room."""
OURS = {"feature_repo", "ingestion", "training", "serving", "monitoring", "infra", "tests"}
HEAVY = {"feast", "mlflow", "evidently", "xgboost", "sklearn", "bentoml", "matplotlib", "pandas", "distributed", "dask"}
PURE = {"socket", "subprocess", "requests", "httpx", "redis", "deltalake", "websockets", "asyncio", "threading"}


def module_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def within(module: str, package: str) -> bool:
    return module == package or module.startswith(f"{package}.")


def imports(tree: ast.AST, module: str, is_package: bool) -> Iterator[str]:
    """All modules that a file imports, anywhere in it; ``from a import b`` counts as ``a.b``."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = module.split(".")[: len(module.split(".")) - node.level + is_package] if node.level else []
            base = ".".join([*above, *([node.module] if node.module else [])])
            yield from (f"{base}.{alias.name}" for alias in node.names)


def forbidden(module: str, imported: Iterator[str]) -> list[str]:
    room = max((r for r in ROOMS if within(module, r)), key=len)
    ours = (name for name in imported if name.split(".")[0] in OURS)
    return [name for name in ours if not any(within(name, allowed) for allowed in ROOMS[room])]


FILES = sorted(p for room in OURS - {"tests"} for p in (ROOT / room).rglob("*.py"))


@pytest.mark.parametrize("path", FILES, ids=module_of)
def test_direction(path: Path) -> None:
    module = module_of(path)
    found = forbidden(module, imports(ast.parse(path.read_text()), module, path.name == "__init__.py"))
    assert not found, f"{module} may not import {found}"


@pytest.mark.parametrize(
    ("module", "line", "wrong"),
    [
        ("serving.x", "from training import models", ["training.models"]),
        ("serving.x", "from training import artefact", []),
        ("ingestion.kernel.x", "import ingestion.tables", ["ingestion.tables"]),
        ("ingestion.kernel.x", "from ..tables import scan", ["ingestion.tables.scan"]),
        ("ingestion.kernel.x", "from . import book", []),
        ("infra.settings", "from feature_repo import errors", ["feature_repo.errors"]),
        ("monitoring.x", "def f():\n    from infra.embedded import ping", ["infra.embedded.ping"]),
        ("infra.x", "from tests import conftest", ["tests.conftest"]),
    ],
)
def test_the_check_itself(module: str, line: str, wrong: list[str]) -> None:
    assert forbidden(module, imports(ast.parse(line), module, is_package=False)) == wrong


@pytest.mark.parametrize("path", [p for p in FILES if within(module_of(p), "ingestion.kernel")], ids=module_of)
def test_kernel_does_no_io(path: Path) -> None:
    tree = ast.parse(path.read_text())
    top = {name.split(".")[0] for name in imports(tree, module_of(path), path.name == "__init__.py")}
    assert not top & PURE
    calls = {node.func.id for node in ast.walk(tree) if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)}
    assert not calls & {"open", "print", "input"}


def test_command_line_starts_without_heavy_libraries() -> None:
    code = (
        "import sys; from infra import cli; cli.build(); "
        "print([m for m in sys.modules if m.split('.')[0] in "
        f"{sorted(HEAVY | {'numpy', 'polars', 'pyarrow', 'numba', 'pydantic', 'rich'})}])"
    )
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"

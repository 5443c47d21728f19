"""Documents: generated ones are up to date, every command in them exists, every link leads somewhere.

A block of commands under the line ``<!-- runs -->`` is also run, in a data folder of its own.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer.main

from infra import cli, docs
from infra.settings import ROOT

DOCUMENTS = sorted(p for p in [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")] if p.is_file())
BLOCK = re.compile(r"(?P<mark><!-- runs -->\s*\n)?^```(?:sh|bash|shell|console)\n(?P<body>.*?)^```", re.M | re.S)
FOREIGN = {"mlflow": {"ui"}, "bentoml": {"serve"}, "feast": {"apply", "ui"}}
"""Commands of other programs that we promise to work unmodified."""


def commands(text: str) -> Iterator[tuple[bool, list[str]]]:
    """Commands in the shell blocks of a document: whether marked to run, and the words."""
    for block in BLOCK.finditer(text):
        for line in block["body"].replace("\\\n", " ").splitlines():
            for part in re.split(r"&&|\||;", line.removeprefix("$ ")):
                words = shlex.split(part, comments=True)
                while words and re.fullmatch(r"[A-Z_]+=.*", words[0]):
                    words.pop(0)
                if words:
                    yield block["mark"] is not None, words


def problem(words: list[str]) -> str | None:
    """What is wrong with a command, or None."""
    program, *rest = words
    name = program.rpartition("/")[2]
    if name == "make":
        targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.M))
        asked = [word for word in rest if "=" not in word and not word.startswith("-")]
        return None if set(asked) <= targets else f"no such target: {sorted(set(asked) - targets)}"
    if name in FOREIGN:
        return None if rest and rest[0] in FOREIGN[name] else f"not promised: {words}"
    if name != "volspike":
        return None
    group = typer.main.get_command(cli.build())
    if rest == ["--help"]:
        return None
    command = group.commands.get(rest[0]) if rest else None  # type: ignore[attr-defined]
    if command is None:
        return f"no such command: {rest}"
    known = {option for parameter in command.params for option in (*parameter.opts, *parameter.secondary_opts)}
    given = {word.partition("=")[0] for word in rest[1:] if re.match(r"--?[a-z]", word)} - {"--help"}
    return None if given <= known else f"no such option of {rest[0]}: {sorted(given - known)}"


@pytest.mark.parametrize("name", docs.FILES)
def test_generated_file_is_up_to_date(name: str) -> None:
    assert (ROOT / name).read_text() == docs.FILES[name](), "run make docs"


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda p: str(p.relative_to(ROOT)))
def test_commands_exist(path: Path) -> None:
    wrong = [found for _, words in commands(path.read_text()) if (found := problem(words))]
    assert not wrong


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda p: str(p.relative_to(ROOT)))
def test_links_lead_somewhere(path: Path) -> None:
    targets = re.findall(r"\]\((?!https?:|mailto:|#)([^)#\s]+)", path.read_text())
    assert not [target for target in targets if not (path.parent / target).exists()]


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda p: str(p.relative_to(ROOT)))
def test_marked_commands_run(path: Path, data_dir: Path) -> None:
    marked = [words for mark, words in commands(path.read_text()) if mark]
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    for words in marked:
        done = subprocess.run(words, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{shlex.join(words)}: {done.stderr}"


@pytest.mark.parametrize(
    ("line", "wrong"),
    [
        ("volspike replay --raw x --compute-every-n 5", False),
        ("volspike replay --row x", True),
        ("volspike fly", True),
        ("volspike --help", False),
        ("volspike --row", True),
        ("make demo ARGS='--keep'", False),
        ("make coffee", True),
        ("VOLSPIKE_DATA=x volspike doctor --json", False),
        ("mlflow ui", False),
        ("mlflow fly", True),
        ("git clone somewhere", False),
    ],
)
def test_the_check_itself(line: str, wrong: bool) -> None:
    ((_, words),) = commands(f"```sh\n{line}\n```\n")
    assert (problem(words) is not None) is wrong

"""The demonstrations of docs/leaks.md: run them in order, and put what they print under each.

``python -m tests.leaks.document`` writes the document anew.
"""

from __future__ import annotations

import contextlib
import io
import re
from pathlib import Path

PATH = Path(__file__).parents[2] / "docs" / "leaks.md"
BLOCK = re.compile(r"^```python\n(?P<code>.*?)^```\n(?:\n```text\n(?P<shown>.*?)^```\n)?", re.M | re.S)


def outputs(text: str) -> list[tuple[str, str]]:
    """Run the blocks of a document in one namespace; of each the text shown under it, and what it printed."""
    scope: dict[str, object] = {}
    found = []
    for number, block in enumerate(BLOCK.finditer(text)):
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            exec(compile(block["code"], f"{PATH.name} block {number}", "exec"), scope)  # noqa: S102
        found.append((block["shown"] or "", printed.getvalue()))
    return found


def written(text: str) -> str:
    """Return the document with what its blocks print."""
    printed = iter([after for _, after in outputs(text)])

    def filled(block: re.Match[str]) -> str:
        said = next(printed)
        return f"```python\n{block['code']}```\n" + (f"\n```text\n{said}```\n" if said else "")

    return BLOCK.sub(filled, text)


if __name__ == "__main__":
    PATH.write_text(written(PATH.read_text()))

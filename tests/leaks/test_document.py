"""docs/leaks.md: its demonstrations run, and print what stands under them."""

from __future__ import annotations

from tests.leaks import document


def test_every_demonstration_prints_what_the_document_says():
    found = document.outputs(document.PATH.read_text())
    assert len(found) > 10
    assert [printed for _, printed in found] == [shown for shown, _ in found], "run python -m tests.leaks.document"

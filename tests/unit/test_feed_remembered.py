"""What an ingestor remembers of its topic: only of the same servers, and only where it is enough."""

from __future__ import annotations

from pathlib import Path

from ingestion.feed.remembered import Topic, recall, remember


def test_it_recalls_what_it_knew_of_these_servers(tmp_path: Path) -> None:
    assert recall(tmp_path, "a:9092", 1) is None
    remember(tmp_path, Topic("a:9092", 4))
    assert recall(tmp_path, "a:9092", 4) == 4
    assert recall(tmp_path, "b:9092", 4) is None
    assert recall(tmp_path, "a:9092", 5) is None


def test_a_damaged_memory_is_none(tmp_path: Path) -> None:
    (tmp_path / "topic.json").write_text('{"servers":')
    assert recall(tmp_path, "a:9092", 1) is None

"""Logs: JSON in a pipe, from the asked level on, and never a secret."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator

import pytest
import structlog

from infra.logs import configure_logging


@pytest.fixture
def out() -> Iterator[io.StringIO]:
    stream = io.StringIO()
    yield stream
    structlog.reset_defaults()


def test_one_json_object_a_line_from_the_level_on(out: io.StringIO) -> None:
    configure_logging("info", out)
    log = structlog.get_logger()
    log.debug("unseen")
    log.info("seen", product_id="BTC-USD", rows=3)
    log.warning("too")
    first, second = (json.loads(line) for line in out.getvalue().splitlines())
    assert (first["event"], first["level"], first["product_id"], first["rows"]) == ("seen", "info", "BTC-USD", 3)
    assert first["timestamp"].endswith("Z")
    assert second["event"] == "too"


def test_secrets_are_not_written(out: io.StringIO) -> None:
    configure_logging("debug", out)
    log = structlog.get_logger()
    log.info(
        "connecting to redis://me:hunter2@db:6379/0",
        redis="db:6379,password=hunter2,ssl=true",
        Password="hunter2",
        nested={"api_key": "hunter2", "list": ["https://u:hunter2@host"]},
    )
    try:
        raise ConnectionError("redis://:hunter2@db refused")
    except ConnectionError:
        log.exception("failed", access_token="hunter2")
    text = out.getvalue()
    assert "hunter2" not in text
    assert "db:6379" in text and "ssl=true" in text and "ConnectionError" in text


def test_lines_on_a_terminal(out: io.StringIO, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(out, "isatty", lambda: True)
    configure_logging("info", out)
    structlog.get_logger().info("seen", password="hunter2")
    with pytest.raises(json.JSONDecodeError):
        json.loads(out.getvalue())
    assert "seen" in out.getvalue() and "hunter2" not in out.getvalue()

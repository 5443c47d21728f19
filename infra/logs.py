"""Logging of every process: structlog to standard error, lines on a terminal, one JSON object a line in a pipe.

Like the settings this imports nothing of ours, so every room may read it. Nothing that looks like a secret is written.
"""

from __future__ import annotations

import logging
import re
import sys
from collections.abc import Mapping
from typing import Any, Final, TextIO

import structlog
from structlog.typing import EventDict, Processor, WrappedLogger

HIDDEN: Final = "***"
_SECRET_KEY = re.compile(r"passw|token|secret|credential|authorization|api_?key|cookie", re.IGNORECASE)
_SECRET_IN_TEXT = re.compile(
    r"(?P<before>://[^/\s:@]*:)[^/\s@]+(?=@)"  # a password in a URL
    r"|(?P<name>\b(?:password|token|secret|api_?key)=)[^,\s&]+",  # an option, as in host:port,password=…
    re.IGNORECASE,
)


def redact(value: Any, key: str = "") -> Any:
    """Hide values under telling keys, and passwords inside addresses, at any depth.

    Examples
    --------
    >>> redact({"user": "me", "password": "x", "url": "localhost:6379,password=x,db=0"})
    {'user': 'me', 'password': '***', 'url': 'localhost:6379,password=***,db=0'}
    >>> redact("redis://:hunter2@db:6379/0")
    'redis://:***@db:6379/0'
    """
    if _SECRET_KEY.search(key):
        return HIDDEN
    if isinstance(value, str):
        return _SECRET_IN_TEXT.sub(lambda found: f"{found['before'] or found['name']}{HIDDEN}", value)
    if isinstance(value, Mapping):
        return {name: redact(inner, str(name)) for name, inner in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [redact(inner) for inner in value]
    return value


def _redacting(logger: WrappedLogger, method: str, event: EventDict) -> EventDict:
    return {key: redact(value, key) for key, value in event.items()}


def configure_logging(level: str, stream: TextIO | None = None) -> None:
    """Log from ``level`` (debug, info, warning, error) on, to standard error or ``stream``."""
    out = sys.stderr if stream is None else stream
    terminal = out.isatty()
    # exceptions become text before the redaction, since a connection error quotes its address
    shape: list[Processor] = [structlog.dev.ConsoleRenderer()] if terminal else [structlog.processors.JSONRenderer()]
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            _redacting,
            *shape,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.getLevelNamesMapping()[level.upper()]),
        logger_factory=structlog.PrintLoggerFactory(out),
    )

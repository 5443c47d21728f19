"""What may name a product, a session or a topic, and what names a push in a table's log."""

from __future__ import annotations

import re
from typing import Final

PUSHED: Final = "volspike-pushed/"
"""Begins the application id, ``volspike-pushed/<session>/<product>``, of those who pushed rows of a session."""
_NAME = re.compile(r"(?=.*[A-Za-z0-9])[A-Za-z0-9._-]{1,64}")


def is_name(text: str) -> bool:
    """Tell whether a product or session id may name a key, a row and a file.

    Examples
    --------
    >>> is_name("BTC-USD"), is_name("../x"), is_name("")
    (True, False, False)
    """
    return _NAME.fullmatch(text) is not None

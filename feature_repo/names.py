"""What may name a product, a session or a topic."""

from __future__ import annotations

import re

_NAME = re.compile(r"(?=.*[A-Za-z0-9])[A-Za-z0-9._-]{1,64}")


def is_name(text: str) -> bool:
    """Tell whether a product or session id may name a key, a row and a file.

    Examples
    --------
    >>> is_name("BTC-USD"), is_name("../x"), is_name("")
    (True, False, False)
    """
    return _NAME.fullmatch(text) is not None

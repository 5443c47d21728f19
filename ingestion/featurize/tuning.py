"""The interpreter, set for a loop that makes and forgets tens of thousands of small objects a second."""

from __future__ import annotations

import gc
import sys
from typing import Final

SWITCH_S: Final = 0.0005
"""How long a thread may keep the others waiting: those of commit and online store must not hold a row up for 5 ms."""
THRESHOLDS: Final = (50_000, 20, 100)
"""A batch of messages is some 40,000 objects, none in a cycle: looking for cycles in each 700 finds nothing."""


def tune() -> None:
    """Set this process up; call it when all that is imported at the start is imported.

    What there is by then stays for good, so the collector needn't walk it: Feast's imports alone leave a million
    objects, and walking these took longer than the kernel.
    """
    sys.setswitchinterval(SWITCH_S)
    gc.collect()
    gc.freeze()
    gc.set_threshold(*THRESHOLDS)

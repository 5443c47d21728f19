"""The interpreter and its memory, set for a loop that makes and forgets tens of thousands of objects a second."""

from __future__ import annotations

import ctypes
import gc
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

SWITCH_S: Final = 0.0005
"""How long a thread may keep the others waiting: the interpreter's own, 5 ms, is a
message's whole way."""
THRESHOLDS: Final = (200_000, 20, 100)
"""A batch of messages is some 40,000 objects, none in a cycle: looking for cycles in each 700 finds nothing."""


def give_back() -> None:
    """Give free memory back to the system, where its C library can (glibc): a commit takes 100 MB for a moment."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def arrow_gives_back() -> None:
    """Have Arrow allocate from the C library, whose free memory :func:`give_back` reaches; its own pool keeps 20 MB."""
    import pyarrow as pa

    pa.set_memory_pool(pa.system_memory_pool())


def leave_alone() -> None:
    """Have the collector of cycles never look again at what there is now."""
    gc.collect()
    gc.freeze()


@contextmanager
def tuned() -> Iterator[None]:
    """Set this process up for the time of the block; enter it when all that is needed from the start is loaded.

    What there is by then is not looked through again for cycles: the imports alone leave hundreds of thousands of
    objects, and walking these took longer than the kernel.
    """
    interval, thresholds = sys.getswitchinterval(), gc.get_threshold()
    sys.setswitchinterval(SWITCH_S)
    leave_alone()
    gc.set_threshold(*THRESHOLDS)
    try:
        yield
    finally:
        gc.set_threshold(*thresholds)
        gc.unfreeze()
        sys.setswitchinterval(interval)

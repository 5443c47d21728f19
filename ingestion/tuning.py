"""The interpreter and its memory, set for a loop that makes and forgets tens of thousands of objects a second."""

from __future__ import annotations

import ctypes
import gc
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

SWITCH_S: Final = 0.0005
"""How long a thread may keep the others waiting: the interpreter's own, 5 ms, is a message's whole way."""
THRESHOLDS: Final = (200_000, 20, 100)
"""A batch of messages is some 40,000 objects, none in a cycle: looking for cycles in each 700 finds nothing."""
ARENA_MAX: Final = -8
"""``M_ARENA_MAX``: how many heaps glibc makes for threads."""


def one_heap() -> None:
    """Have all threads and Arrow share the first heap of the C library (glibc); call it before there are threads.

    A heap for each thread, and one of Arrow's own, keep what they held at their largest: 15 and 20 MB of a featurizer.

    Notes
    -----
    ``M_ARENA_MAX`` of malloc.h; see mallopt(3).
    """
    import pyarrow as pa

    pa.set_memory_pool(pa.system_memory_pool())
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(ARENA_MAX, 1)


def give_back() -> None:
    """Give free memory back to the system, where its C library can (glibc): a commit takes 100 MB for a moment."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


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

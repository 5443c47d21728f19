"""One process at a time, where two would each undo or count wrongly what the other does."""

from __future__ import annotations

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from feature_repo.errors import StoreError


@contextmanager
def alone(path: Path, what: str) -> Iterator[None]:
    """Hold the lock of a file, which ends with the process that holds it.

    Parameters
    ----------
    path
        File to lock; made where it is missing.
    what
        For the message: what another process is doing.

    Raises
    ------
    StoreError
        If another process holds it, or the file can't be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = path.open("wb")
    except OSError as error:
        raise StoreError(
            f"{path} can't be written: {error.strerror}; set VOLSPIKE_DATA to a folder of yours"
        ) from error
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise StoreError(
                f"another {what} is under way, must be one at a time; try again when it has ended"
            ) from None
        yield

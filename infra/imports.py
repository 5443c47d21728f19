"""Packages that others import when they find them, and that a process is better off without."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager


class _Hiding:
    """A finder that says of one package that it isn't there."""

    def __init__(self, package: str) -> None:
        self._package = package

    def find_spec(self, name: str, path: object = None, target: object = None) -> None:
        """Refuse the package, leave others to the finders after this one."""
        if name == self._package:
            raise ModuleNotFoundError(f"{name} is hidden here", name=name)


@contextmanager
def without(package: str) -> Iterator[None]:
    """Hide a package from imports made meanwhile, unless it is loaded already."""
    hiding = _Hiding(package)
    sys.meta_path.insert(0, hiding)
    try:
        yield
    finally:
        sys.meta_path.remove(hiding)


def arrow_without_pandas() -> None:
    """Have pyarrow do without pandas for good: it looks for it once, at its first array.

    30 MB, and a second or more of each start, which a command that makes no data frame needn't pay; ``to_pandas``
    fails afterwards. Call it before anything makes an array.
    """
    with without("pandas"):
        import pyarrow as pa

        pa.array([0])

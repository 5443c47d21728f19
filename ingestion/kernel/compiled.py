"""How the kernel is compiled: once per version of its sources, for Python and for its own inner calls.

Numba's cache looks only at the file of the function itself, so a change in a callee would go unseen and old machine
code would run. Here the cache lies in a folder named after a hash of all sources of the kernel and of the contract:
any change compiles anew.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numba

_HERE = Path(__file__).parent


def _source_hash() -> str:
    sources = sorted(_HERE.glob("*.py"))
    contract = _HERE.parents[1] / "feature_repo" / "contract.py"
    digest = hashlib.sha256()
    for path in (*sources, contract):
        digest.update(path.name.encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()[:12]


def _cache_folder() -> str:
    """Return where compiled code is kept: beside the sources, or where NUMBA_CACHE_DIR says."""
    base = os.environ.get("NUMBA_CACHE_DIR")
    return str((Path(base) if base else _HERE / "__pycache__") / f"kernel-{_source_hash()}")


_FOLDER = _cache_folder()


def _cached(**options: Any) -> Callable[[Callable[..., Any]], Any]:
    def decorate(function: Callable[..., Any]) -> Any:
        before = numba.config.CACHE_DIR
        numba.config.CACHE_DIR = _FOLDER
        try:
            return numba.njit(cache=True, error_model="numpy", _nrt=False, **options)(function)
        finally:
            numba.config.CACHE_DIR = before

    return decorate


entry = _cached(nogil=True)
"""Decorator of what Python calls: other threads go on meanwhile."""
inner = _cached(no_cpython_wrapper=True, no_cfunc_wrapper=True)
"""Decorator of what only other compiled functions call: without wrappers it compiles in half the time."""
inlined = _cached(no_cpython_wrapper=True, no_cfunc_wrapper=True, forceinline=True)
"""Decorator of what each message or row goes through: copied into its caller, as handing over arrays takes longer than
much of what is done with them."""

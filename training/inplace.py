"""Margins of a booster through XGBoost's C interface.

``Booster.inplace_predict`` spends 0.2 ms of Python on finding out what kind of table it was given, three times what the
trees take, and `/predict` has 2 ms for everything. This makes the one C call that it makes for a NumPy array, so the
margins are the same to the last bit. Source: XGBoost's C API, ``XGBoosterPredictFromDense``, ``XGBGetLastError``.
"""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np
from numpy.typing import NDArray

# type 1 is the margin, iterations 0 to 0 are all trees
_CONFIG = (
    b'{"type": 1, "training": false, "iteration_begin": 0, "iteration_end": 0, "missing": NaN, '
    b'"strict_shape": false, "cache_id": 0}'
)


class Margins:
    """Callable: float64[n, f] to the margins, float32[n]; may be called from many threads at once.

    Parameters
    ----------
    booster
        An ``xgboost.Booster`` with one output, its model loaded.

    Attributes
    ----------
    booster
        The same.
    """

    def __init__(self, booster: Any) -> None:
        from xgboost.libpath import find_lib_path

        # the library that xgboost has loaded already; this handle has argument types of its own
        library = ctypes.CDLL(find_lib_path()[0])
        self._predict = library.XGBoosterPredictFromDense
        self._predict.argtypes = (
            ctypes.c_void_p, ctypes.c_char_p, ctypes.c_char_p, ctypes.c_void_p,
            ctypes.POINTER(ctypes.POINTER(ctypes.c_uint64)), ctypes.POINTER(ctypes.c_uint64),
            ctypes.POINTER(ctypes.POINTER(ctypes.c_float)),
        )  # fmt: skip
        self._last_error = library.XGBGetLastError
        self._last_error.restype = ctypes.c_char_p
        self.booster = booster  # owns the handle

    def __call__(self, x: NDArray[np.float64]) -> NDArray[np.float32]:
        """Predict.

        Raises
        ------
        RuntimeError
            If XGBoost refuses, with its own words, or its booster has several outputs.
        """
        x = np.ascontiguousarray(x, np.float64)
        rows, columns = x.shape
        if not rows:
            return np.empty(0, np.float32)
        table = f'{{"data": [{x.ctypes.data}, true], "shape": [{rows}, {columns}], "typestr": "<f8", "version": 3}}'
        shape, dimensions = ctypes.POINTER(ctypes.c_uint64)(), ctypes.c_uint64()
        found = ctypes.POINTER(ctypes.c_float)()
        failed = self._predict(
            self.booster.handle, table.encode(), _CONFIG, None,
            ctypes.byref(shape), ctypes.byref(dimensions), ctypes.byref(found),
        )  # fmt: skip
        if failed:
            raise RuntimeError(f"XGBoost: {self._last_error().decode(errors='replace')[:500]}")
        if (dimensions.value, shape[0]) != (1, rows):
            raise RuntimeError(f"XGBoost gave {dimensions.value} dimensions for {rows} rows, expected one margin a row")
        # XGBoost owns the memory and writes the next answer of this thread into it
        return np.ctypeslib.as_array(found, (rows,)).copy()

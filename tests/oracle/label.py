"""The label by its formula (DESIGN §6): the standard deviation of the mid's returns over the 60 s after t."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

from tests.oracle.stats import Moments, S


def label(
    t_ns: int, quotes: Sequence[tuple[int, float]], gaps: Sequence[tuple[int, int | None]], watermark: int,
    returns: str = "1s",
) -> float | None:  # fmt: skip
    """Compute sigma_fwd at t.

    ``quotes`` are (effective time, mid) in log order, ``gaps`` (start, end) with an open one's end None.
    """
    end = t_ns + 60 * S
    if watermark < end or not any(when <= t_ns for when, _ in quotes):
        return None
    if any(a < end and (b is None or b > t_ns) for a, b in gaps):
        return None

    def mid_at(moment: int) -> float:
        return [mid for when, mid in quotes if when <= moment][-1]

    if returns == "1s":
        mids = [mid_at(t_ns + k * S) for k in range(61)]
    else:
        mids = [mid_at(t_ns)] + [mid for when, mid in quotes if t_ns < when <= end]
    logs = [math.log(b / a) for a, b in pairwise(mids)]
    return math.sqrt(Moments(logs).m2) if logs else None

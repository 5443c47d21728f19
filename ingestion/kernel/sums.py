"""Running sums that forget exactly: compensated accumulation of terms that enter and leave a window.

A window's sums are kept, never recomputed, so the work per event does not depend on how much the window holds.
Three things keep them right to the last digits:

- **Compensation.** Each sum is a pair (hi, lo): ``hi`` is the floating sum, ``lo`` gathers the rounding errors that
  Knuth's two-sum (TAOCP vol. 2, 4.2.2) makes exact. The term that entered is the term that leaves, so no residue
  builds up.
- **Shift.** Moments are taken about a reference K near the mean (Chan, Golub, LeVeque 1983), so that a price of 1e5
  with ticks of 1e-2 loses nothing to cancellation.
- **Rebuild.** Where the mean has wandered off K, or a term that dwarfed the rest has left, the sums are made anew
  from the ring. The mean can wander 4 standard deviations off K only when nearly all of the window has been
  replaced, and a dwarfing term is followed by a whole window without another, so each rebuild of n terms is paid
  for by n events: the amortised cost stays constant.
"""

from __future__ import annotations

import math

from ingestion.kernel.compiled import inlined

HI = 0
LO = 1

FAR_FROM_SHIFT = 16.0  # rebuild where (mean − K)² exceeds this many variances: costs at most 1e-13 of a fourth moment
DWARFED = 2.0**-60  # rebuild where the highest even power sum fell below this share of its peak: pairs carry 2^-106


@inlined
def add(acc, series, w, j, x):
    """Add ``x`` to the pair ``acc[series, w, j]`` by two-sum."""
    hi = acc[series, w, j, HI]
    s = hi + x
    b = s - hi
    acc[series, w, j, LO] += (hi - (s - b)) + (x - b)
    acc[series, w, j, HI] = s


@inlined
def value(acc, series, w, j):
    """Return the sum held by the pair ``acc[series, w, j]``."""
    return acc[series, w, j, HI] + acc[series, w, j, LO]


@inlined
def clear(acc, series, w, j):
    """Set the pair to exact zero."""
    acc[series, w, j, HI] = 0.0
    acc[series, w, j, LO] = 0.0


@inlined
def variance(s1, s2, n):
    """Population variance from the first two power sums about K."""
    m = s1 / n
    return max(s2 / n - m * m, 0.0)


@inlined
def shape(s1, s2, s3, s4, n):
    """Return biased (skewness, excess kurtosis) from four power sums about K; NaN where the variance vanishes."""
    m = s1 / n
    m2 = s2 / n - m * m
    if not m2 > 0.0:
        return math.nan, math.nan
    m3 = s3 / n - 3.0 * m * (s2 / n) + 2.0 * m * m * m
    m4 = s4 / n - 4.0 * m * (s3 / n) + 6.0 * m * m * (s2 / n) - 3.0 * m * m * m * m
    return m3 / (m2 * math.sqrt(m2)), m4 / (m2 * m2) - 3.0

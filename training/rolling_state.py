"""A rolling tau that goes on: row by row, and as the state that an artefact holds.

The rule is :mod:`training.rolling`'s: a server that pushes each horizon once its label is known gets the tau that
training would have given the row.
"""

from __future__ import annotations

import base64
import math
from bisect import bisect_left, insort
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field

import msgspec
import numpy as np
from numpy.typing import NDArray

from feature_repo.errors import ArtefactError
from training.rolling import KNOWN, NEAR, NS, REASONS, TIED, YOUNG, ZERO, RollingRule, between


@dataclass(slots=True)
class RollingTau:
    """The same rule one row at a time, for one product.

    Parameters
    ----------
    rule
        Percentile, window and horizon.

    Examples
    --------
    >>> tau = RollingTau(RollingRule(50, hours=0.1))
    >>> for second in range(300):
    ...     tau.push(second * NS, 1.0 + second)
    >>> tau.at(300 * NS)  # horizons begun at 0 … 240 have ended
    121.0
    """

    rule: RollingRule
    _waiting: deque[tuple[int, float]] = field(default_factory=deque)
    _window: deque[tuple[int, float]] = field(default_factory=deque)
    _sorted: list[float] = field(default_factory=list)
    _covered_ns: int = 0
    _now_ns: int | None = None

    def push(self, t_ns: int, sigma: float) -> None:
        """Add a labelled horizon, in the order of their beginnings.

        Raises
        ------
        ValueError
            If it begins before the last one, or sigma is no number >= 0.
        """
        end = t_ns + self.rule.horizon_s * NS
        newest = self._waiting or self._window
        if newest and end < newest[-1][0]:
            raise ValueError(f"horizon at {t_ns} came after one that began later; push in the order of time")
        if not 0 <= sigma < math.inf:
            raise ValueError(f"sigma is {sigma}, must be >= 0 and finite; leave unlabelled horizons out")
        self._waiting.append((end, sigma))

    def at(self, t_ns: int) -> float | None:
        """Tau at t, or None with the reason in :meth:`why`; t may not go back.

        Raises
        ------
        ValueError
            If t is before the last one asked for.
        """
        tau, _ = self._at(t_ns)
        return tau

    def why(self, t_ns: int) -> str:
        """Reason, of :data:`REASONS`, why there is no tau at t; empty where there is one."""
        return REASONS[self._at(t_ns)[1]]

    def _at(self, t_ns: int) -> tuple[float | None, int]:
        if self._now_ns is not None and t_ns < self._now_ns:
            raise ValueError(f"t {t_ns} is before {self._now_ns}, which was asked for already; go on in time")
        self._now_ns = t_ns
        while self._waiting and self._waiting[0][0] <= t_ns:
            end, sigma = self._waiting.popleft()
            self._covered_ns += self._step(self._window[-1][0], end) if self._window else 0
            self._window.append((end, sigma))
            insort(self._sorted, sigma)
        while self._window and self._window[0][0] <= t_ns - self.rule.window_ns:
            end, sigma = self._window.popleft()
            self._covered_ns -= self._step(end, self._window[0][0]) if self._window else 0
            del self._sorted[bisect_left(self._sorted, sigma)]
        count = len(self._sorted)
        if not count or self._covered_ns < self.rule.history_ns:
            return None, YOUNG
        position = (count - 1) * (self.rule.percentile / 100)
        below = int(position)
        high = self._sorted[min(below + 1, count - 1)]
        tau = float(between(self._sorted[below], high, position - below))
        if not tau > 0:
            return None, ZERO
        reach = count - bisect_left(self._sorted, tau * (1 - NEAR))
        return (None, TIED) if reach / count > self.rule.allowed + 1 / count else (tau, KNOWN)

    def _step(self, end_ns: int, next_ns: int) -> int:
        return min(next_ns - end_ns, self.rule.horizon_s * NS)

    def state(self) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """Beginnings (ns UTC) and sigmas of the horizons that it holds, in the order of time."""
        held = [*self._window, *self._waiting]
        begun = np.array([end for end, _ in held], np.int64) - self.rule.horizon_s * NS
        return begun, np.array([sigma for _, sigma in held], np.float64)


class _State(msgspec.Struct, frozen=True):
    """One product: runs of (first ns, step ns, count), since rows come at whole seconds, and sigmas as base64."""

    runs: list[tuple[int, int, int]]
    sigma: str


def trailing(
    t_ns: NDArray[np.int64], sigma: NDArray[np.float64], rule: RollingRule, now_ns: int
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Cut labelled horizons, in the order of time, to those that a tau from ``now_ns`` on may need, all ended."""
    ends = np.asarray(t_ns, np.int64) + rule.horizon_s * NS
    kept = (ends <= now_ns) & (ends > now_ns - rule.window_ns)
    order = np.argsort(t_ns[kept], kind="stable")
    return t_ns[kept][order], sigma[kept][order]


def encode(states: Mapping[str, tuple[NDArray[np.int64], NDArray[np.float64]]]) -> bytes:
    """Write the state of each product, as :func:`trailing` and :meth:`RollingTau.state` give it, as JSON."""
    out = {
        product: _State(_runs(t), base64.b64encode(np.asarray(sigma, "<f8").tobytes()).decode())
        for product, (t, sigma) in sorted(states.items())
    }
    return msgspec.json.encode(out)


def decode(content: bytes) -> dict[str, tuple[NDArray[np.int64], NDArray[np.float64]]]:
    """Read what :func:`encode` wrote.

    Raises
    ------
    ArtefactError
        If it is not that.
    """
    out = {}
    try:
        for product, state in msgspec.json.decode(content, type=dict[str, _State]).items():
            steps = [first + step * np.arange(count, dtype=np.int64) for first, step, count in state.runs]
            t = np.concatenate(steps) if steps else np.empty(0, np.int64)
            sigma = np.frombuffer(base64.b64decode(state.sigma, validate=True), "<f8").astype(np.float64)
            if len(t) != len(sigma) or not (np.diff(t) >= 0).all() or not (np.isfinite(sigma) & (sigma >= 0)).all():
                raise ValueError(f"{product} has {len(t)} times in order and {len(sigma)} sigmas >= 0")
            out[product] = (t, sigma)
    except (msgspec.DecodeError, ValueError) as error:
        raise ArtefactError(f"state of the rolling tau: {error}; fetch the artefact again or train again") from error
    return out


def resume(content: bytes, rule: RollingRule) -> dict[str, RollingTau]:
    """Go on from an artefact's state: a :class:`RollingTau` per product."""
    out = {}
    for product, (t, sigma) in decode(content).items():
        out[product] = RollingTau(rule)
        for begun, value in zip(t.tolist(), sigma.tolist(), strict=True):
            out[product].push(begun, value)
    return out


def _runs(t: NDArray[np.int64]) -> list[tuple[int, int, int]]:
    """Compress rising times to (first, step, count)."""
    out: list[tuple[int, int, int]] = []
    first, step, count = 0, 0, 0
    for at in t.tolist():
        if count == 1:
            step = at - first
        if count and at == first + step * count:
            count += 1
            continue
        if count:
            out.append((first, step, count))
        first, step, count = at, 0, 1
    if count:
        out.append((first, step, count))
    return out

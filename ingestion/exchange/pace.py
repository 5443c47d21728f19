"""When an item is due, and which time it then bears: the stream's clock against the machine's."""

from __future__ import annotations

import math
import time
from typing import Final, Literal

from feature_repo.errors import UsageError
from ingestion.exchange.times import Shift

Times = Literal["shift", "squeeze"]
_S: Final = 1_000_000_000


class Pace:
    """The clock of one pass over a feed; it stands still until started.

    ::

        recorded   0 s ────────── 10 s ────────── 20 s
        speed 10   now ─ now+1 s ─ now+2 s                 due
        shift      now ────────── now+10 s ────── now+20 s  time it bears: runs ahead of the wall clock
        squeeze    now ─ now+1 s ─ now+2 s                  time it bears: a livelier market, in step with the wall

    Parameters
    ----------
    origin_ns
        Recorded receive time that is due at the start.
    speed
        Recorded seconds a second; infinite for as fast as clients take it.
    times
        ``shift`` adds one constant to every time; ``squeeze`` also divides distances by the speed.
    ago_s
        How long before now its times begin: a feed that is faster than the clock ends at now, not after it.

    Attributes
    ----------
    reached_ns
        Recorded receive time of the newest item sent: at infinite speed that is what the clock shows.

    Raises
    ------
    UsageError
        If the speed isn't positive, or an infinite one is to be squeezed.
    """

    def __init__(self, origin_ns: int, speed: float = 1.0, times: Times = "shift", ago_s: float = 0.0) -> None:
        if not speed > 0 or (times == "squeeze" and math.isinf(speed)):
            raise UsageError(f"speed must be > 0 (finite where times are squeezed), was {speed}: choose another")
        self.speed, self.times = speed, times
        self._ago_ns = int(ago_s * _S)
        self.started = False
        self.shift = Shift()
        self._origin_ns = self.reached_ns = origin_ns
        self._start_ns = 0

    def start(self) -> None:
        """Begin now."""
        self.started = True
        self._start_ns = time.monotonic_ns()
        # Rounded up: a message may be sent up to 1 ms after its time, never before it.
        squeeze = self.speed if self.times == "squeeze" else 1.0
        self.shift = Shift(time.time_ns() - self._ago_ns - self._origin_ns, origin_ns=self._origin_ns, squeeze=squeeze)

    def limit(self) -> float:
        """Recorded receive time that is due now, ns."""
        if math.isinf(self.speed):
            return math.inf
        return self._origin_ns + (time.monotonic_ns() - self._start_ns) * self.speed

    def wait_s(self, recv_ns: int) -> float:
        """Seconds until an item is due, negative where it is overdue."""
        if math.isinf(self.speed):
            return 0.0
        return ((recv_ns - self._origin_ns) / self.speed - (time.monotonic_ns() - self._start_ns)) / _S

    def recorded_ns(self) -> int:
        """Now, on the recording's clock."""
        if not self.started or math.isinf(self.speed):
            return self.reached_ns
        return int(self.limit())

    def now_ns(self) -> int:
        """Now, as messages bear it, ns."""
        return self.shift.ns(self.recorded_ns())

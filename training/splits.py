"""Splits in time with a purge on the clock, the same instants for all products.

::

    |------ train ------|<- >= 960 s ->|-- validation --|<- >= 960 s ->|-- test --|
                        label + window                   rows in between are lost, and counted

The clock is cut as a whole (:func:`chronological`), each session by itself (:func:`by_session`), or between sessions
(:func:`whole_sessions`). In all of them rows of different blocks are at least the purge apart, so that no window and
no horizon touches both.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

import numpy as np
from numpy.typing import NDArray

from feature_repo.contract import PURGE_S
from feature_repo.errors import InsufficientDataError, UsageError

BLOCKS: Final = ("train", "validation", "test")
LOST: Final = -1
_NS = 1_000_000_000


@dataclass(frozen=True, slots=True)
class Block:
    """First and last time of a block, ns UTC, and how many rows lie in it."""

    name: str
    start_ns: int
    end_ns: int
    rows: int


@dataclass(frozen=True, slots=True, eq=False)
class Split:
    """Which row is in which block.

    Attributes
    ----------
    blocks
        Train, validation and test.
    lost
        Rows in none of them: within the purge of another block, or of a session too short to be split.
    purge_s
        Least distance on the clock between rows of two blocks, seconds.
    member
        int8[n], index into :data:`BLOCKS` of each row, :data:`LOST` for the others.
    warnings
        What a reader of the figures must know.
    """

    blocks: tuple[Block, ...]
    lost: int
    purge_s: int
    member: NDArray[np.int8]
    warnings: tuple[str, ...] = field(default=())

    def __getitem__(self, name: str) -> Block:
        """Block of that name."""
        return next(b for b in self.blocks if b.name == name)

    def of(self, name: str) -> NDArray[np.bool_]:
        """Tell which rows lie in a block, bool[n]."""
        return np.asarray(self.member == BLOCKS.index(name))

    def names(self) -> NDArray[np.str_]:
        """Block of each row by name, str[n]; ``lost`` for rows in none."""
        return np.array((*BLOCKS, "lost"))[self.member]


def chronological(
    t_ns: NDArray[np.int64], ratios: Sequence[float] = (0.7, 0.15, 0.15), *, purge_s: int = PURGE_S
) -> Split:
    """Cut the clock into train, validation and test.

    The ratios are of the rows that are left after the purge, so that a short tape loses from all blocks alike; where
    recordings lie hours apart the purge costs nothing.

    Parameters
    ----------
    t_ns
        int64[n], times of all usable rows of all products, ns UTC, any order.
    ratios
        Shares of train, validation and test; each > 0, sum 1.
    purge_s
        Least distance on the clock between rows of two blocks, seconds.

    Raises
    ------
    UsageError
        If the ratios are not shares of one.
    InsufficientDataError
        If a block would be empty.
    """
    _check_ratios(ratios)
    t = np.asarray(t_ns, np.int64)
    member = _members(t, ratios, purge_s)
    if member is None:
        span = (int(t.max()) - int(t.min())) / _NS if len(t) else 0.0
        raise InsufficientDataError(
            f"{len(t)} usable rows over {span:.0f} s cannot be split into {', '.join(BLOCKS)} with {purge_s} s between "
            f"them, more than {2 * purge_s} s were needed; replay a longer tape"
        )
    return _split(t, member, purge_s, ())


def by_session(
    t_ns: NDArray[np.int64],
    session: NDArray[np.str_],
    ratios: Sequence[float] = (0.7, 0.15, 0.15),
    *,
    purge_s: int = PURGE_S,
) -> Split:
    """Cut each session in time, so that every block has a part of every session.

    Where blocks of two sessions meet on the clock, rows of train, then of validation, give way. A session too short for
    three blocks is lost as a whole.

    Parameters
    ----------
    t_ns, session
        int64[n] times, ns UTC, any order; str[n] session of each row.
    ratios, purge_s
        As in :func:`chronological`, of each session.

    Raises
    ------
    UsageError
        If the ratios are not shares of one.
    InsufficientDataError
        If a block would be empty.
    """
    _check_ratios(ratios)
    t = np.asarray(t_ns, np.int64)
    member = np.full(len(t), LOST, np.int8)
    warnings = []
    for name in np.unique(session):
        mine = session == name
        found = _members(t[mine], ratios, purge_s)
        if found is None:
            span = (int(t[mine].max()) - int(t[mine].min())) / _NS
            warnings.append(
                f"session {name} is left out: its {int(mine.sum())} usable rows over {span:.0f} s do not make three "
                f"blocks with {purge_s} s between them"
            )
        else:
            member[mine] = found
    return _split(t, _purged(t, member, purge_s), purge_s, warnings)


def whole_sessions(
    t_ns: NDArray[np.int64],
    session: NDArray[np.str_],
    blocks: Mapping[str, Sequence[str]],
    *,
    purge_s: int = PURGE_S,
) -> Split:
    """Give whole sessions to blocks.

    Where two of them meet on the clock, rows of train, then of validation, give way.

    Parameters
    ----------
    t_ns, session
        int64[n] times, ns UTC, any order; str[n] session of each row.
    blocks
        Sessions of train, validation and test, by full id.
    purge_s
        As in :func:`chronological`.

    Raises
    ------
    UsageError
        If a session is in two blocks.
    InsufficientDataError
        If a block would be empty.
    """
    t = np.asarray(t_ns, np.int64)
    member = np.full(len(t), LOST, np.int8)
    for i, name in enumerate(BLOCKS):
        twice = [s for s in blocks[name] for other in BLOCKS[:i] if s in blocks[other]]
        if twice:
            raise UsageError(f"session {twice[0]} is in {name} and in another block; give each session to one block")
        member[np.isin(session, list(blocks[name]))] = i
    return _split(t, _purged(t, member, purge_s), purge_s, ())


def _check_ratios(ratios: Sequence[float]) -> None:
    if len(ratios) != len(BLOCKS) or any(not r > 0 for r in ratios) or abs(sum(ratios) - 1) > 1e-9:
        raise UsageError(f"ratios of {', '.join(BLOCKS)} must each be > 0 and sum to 1, were {list(ratios)}")


def _members(t_ns: NDArray[np.int64], ratios: Sequence[float], purge_s: int) -> NDArray[np.int8] | None:
    """Block of each row when the clock is cut by ratios; None if a block would be empty."""
    t = np.sort(t_ns)
    # The most rows whose shares fit one after the other, purges between them, found by bisection: asking for more rows
    # moves every later block further, so what fits once fits for all smaller numbers.
    low, high = 0, len(t)
    while low < high:
        middle = (low + high + 1) // 2
        if _cut(t, middle, ratios, purge_s) is None:
            high = middle - 1
        else:
            low = middle
    cut = _cut(t, low, ratios, purge_s) if low else None
    if cut is None:
        return None
    member = np.full(len(t), LOST, np.int8)
    for i, (a, b) in enumerate(cut):
        member[(t_ns >= t[a]) & (t_ns <= t[b - 1])] = i
    return member


def _cut(t: NDArray[np.int64], rows: int, ratios: Sequence[float], purge_s: int) -> list[tuple[int, int]] | None:
    """Index ranges of the blocks if each is to hold its share of ``rows``; the last one takes what follows."""
    ranges = []
    start = 0
    for i, ratio in enumerate(ratios):
        end = start + max(1, int(np.ceil(ratio * rows)))
        if end > len(t):
            return None
        last = i == len(ratios) - 1
        # rows of one instant (several products) stay together
        end = len(t) if last else int(np.searchsorted(t, t[end - 1], side="right"))
        ranges.append((start, end))
        start = int(np.searchsorted(t, t[end - 1] + purge_s * _NS, side="left"))
    return ranges


def _purged(t: NDArray[np.int64], member: NDArray[np.int8], purge_s: int) -> NDArray[np.int8]:
    """Take out what lies within the purge of a later block's rows, on either side: the later block keeps all."""
    out = member.copy()
    for i in (BLOCKS.index("validation"), BLOCKS.index("train")):
        others = np.sort(t[out > i])
        mine = np.flatnonzero(out == i)
        near = np.searchsorted(others, t[mine] + purge_s * _NS, side="left")
        near -= np.searchsorted(others, t[mine] - purge_s * _NS, side="right")
        out[mine[near > 0]] = LOST
    return out


def _split(t: NDArray[np.int64], member: NDArray[np.int8], purge_s: int, warnings: Sequence[str]) -> Split:
    blocks = []
    for i, name in enumerate(BLOCKS):
        mine = t[member == i]
        if len(mine) == 0:
            why = "".join(f"; {w}" for w in warnings)
            raise InsufficientDataError(
                f"{name} block has no row, must have at least 1 (rows less than {purge_s} s from another block are "
                f"lost{why}); give it other sessions or longer ones"
            )
        blocks.append(Block(name, int(mine.min()), int(mine.max()), len(mine)))
    said = list(warnings)
    for earlier, later in ((0, 1), (1, 2)):
        if blocks[earlier].end_ns > blocks[later].start_ns:
            said.append(
                f"{BLOCKS[earlier]} reaches past the start of {BLOCKS[later]}: its figures are not a forecast made "
                "from the past alone"
            )
    return Split(tuple(blocks), int((member == LOST).sum()), purge_s, member, tuple(said))

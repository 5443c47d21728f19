"""Sessions by the names that people type: a number in the order of time, an id, or the beginning of one."""

from __future__ import annotations

from collections.abc import Sequence

import polars as pl

from feature_repo.errors import UsageError
from ingestion import tables


def recorded() -> list[str]:
    """List the sessions that have grid rows, in the order of their first."""
    return in_time(tables.scan("spike_features").filter(pl.col("trigger") == "grid"))


def in_time(rows: pl.LazyFrame) -> list[str]:
    """List the sessions of rows with session and event_time_ns in the order of their first row."""
    first = rows.group_by("session").agg(pl.col("event_time_ns").min()).sort("event_time_ns", "session")
    return [str(name) for name in tables.collect("spike_features", first)["session"]]


def choose(names: Sequence[str], known: Sequence[str], *, option: str = "--session") -> tuple[str, ...]:
    """Find the session that each name means.

    Parameters
    ----------
    names
        A whole number from 1 to the number of sessions means that one in the order of time; anything else is an id or
        the beginning of one.
    known
        Ids in the order of time.
    option
        Named in the error.

    Raises
    ------
    UsageError
        If a name fits no session or several, or two names mean one session.

    Examples
    --------
    >>> choose(["2", "5e"], ["5e55101234567890", "77aa2b1234567890"])
    ('77aa2b1234567890', '5e55101234567890')
    """
    out: list[str] = []
    for name in names:
        if name.isdecimal() and len(name) < 6 and 1 <= int(name) <= len(known):
            fits = [known[int(name) - 1]]
        else:
            fits = [s for s in known if s.startswith(name)]
        if len(fits) != 1:
            numbered = ", ".join(f"{i} = {s}" for i, s in enumerate(known, 1))
            raise UsageError(f"{option} {name!r} fits {len(fits)} sessions, must fit one of: {numbered}")
        if fits[0] in out:
            raise UsageError(f"{option} {name!r} is session {fits[0]}, which is named already; name it once")
        out.append(fits[0])
    return tuple(out)


def resolve(names: Sequence[str], *, option: str) -> tuple[str, ...]:
    """Turn numbers into ids, so that the choice stays what it was when the tables grow."""
    if not any(name.isdecimal() and len(name) < 6 for name in names):
        return tuple(names)
    return choose(names, recorded(), option=option)

"""The point-in-time join, said as slowly and plainly as possible."""

from __future__ import annotations

from collections.abc import Sequence


def naive_asof(
    asked: Sequence[tuple[str | None, int | None]],
    rows: Sequence[tuple[str | None, int | None, int | None]],
    *,
    ttl_ns: int | None = None,
    created_cut: bool = False,
) -> list[int | None]:
    """For each asked (key, time): the number of the row (key, time, created) that was valid then, or None."""
    answer: list[int | None] = []
    for key, time in asked:
        best: int | None = None
        for number, (row_key, row_time, created) in enumerate(rows):
            if key is None or time is None or row_key != key or row_time is None or row_time > time:
                continue
            if ttl_ns and row_time < time - ttl_ns:
                continue
            if created_cut and (created is None or created > time):
                continue
            if best is None or _beats((row_time, created), rows[best][1:]):
                best = number
        answer.append(best)
    return answer


def _beats(new: tuple[int, int | None], old: tuple[int | None, int | None]) -> bool:
    """Newer event; of equal events the later created (unknown is earliest); of equal those too the later written."""
    assert old[0] is not None
    if new[0] != old[0]:
        return new[0] > old[0]
    if new[1] is None or old[1] is None:
        return old[1] is None
    return new[1] >= old[1]

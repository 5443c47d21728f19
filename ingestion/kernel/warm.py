"""Have the kernel compiled, or its compiled code loaded, before the first message that counts."""

from __future__ import annotations

from typing import Final, NamedTuple

from ingestion.kernel.featurizer import Featurizer

_TIME: Final = b'"product_id":"A-B","time":"2025-01-01T00:00:00.000000Z"'
_MESSAGES: Final = (
    b'{"type":"snapshot","product_id":"A-B","bids":[["1","1"]],"asks":[["2","1"]]}',
    b'{"type":"l2update",%b,"changes":[["buy","1","2"]]}' % _TIME,
    b'{"type":"match",%b,"trade_id":1,"side":"buy","size":"1","price":"1"}' % _TIME,
    b'{"type":"ticker",%b,"price":"1","best_bid":"1","best_ask":"2"}' % _TIME,
)


class _Logged(NamedTuple):
    session: str
    n: int
    recv_ns: int
    kind: str
    raw: bytes


def warm_up() -> None:
    """Run a few messages by both roads and forget them: a second where compiled code is there, half a minute else."""
    Featurizer().push_lines(b"\n".join(_MESSAGES))
    now_ns = 1_735_689_600_000_000_000
    Featurizer().push_log([_Logged("0" * 16, n, now_ns, "feed", raw) for n, raw in enumerate(_MESSAGES, start=1)])

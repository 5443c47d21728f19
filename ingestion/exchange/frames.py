"""Messages on their way out, and the WebSocket frames that carry them."""

from __future__ import annotations

from typing import Final

from ingestion.exchange.feeds import Item

TEXT: Final = 0x81
BINARY: Final = 0x82


def frame(payload: bytes, opcode: int = TEXT) -> bytes:
    r"""Return an unmasked, unfragmented WebSocket frame (RFC 6455 §5.2).

    Examples
    --------
    >>> frame(b"{}")
    b'\x81\x02{}'
    """
    n = len(payload)
    if n < 126:
        return bytes((opcode, n)) + payload
    if n < 65_536:
        return bytes((opcode, 126, n >> 8, n & 255)) + payload
    return bytes((opcode, 127)) + n.to_bytes(8, "big") + payload


class Message:
    """A message for any number of clients of one dialect.

    Parameters
    ----------
    kind, product, key
        For the ledger, and what faults go by.
    payload
        All of it, or what stands before its ``sequence_num`` on an Advanced Trade connection.
    tail
        What stands after that number; None where there is none.
    item
        Of the feed, where it is one of its messages.
    """

    __slots__ = ("item", "key", "kind", "payload", "product", "tail", "whole")

    def __init__(
        self, kind: str, product: str, key: str, payload: bytes, tail: bytes | None = None, item: Item | None = None
    ) -> None:
        self.kind, self.product, self.key, self.payload, self.tail, self.item = kind, product, key, payload, tail, item
        self.whole = frame(payload) if tail is None else b""

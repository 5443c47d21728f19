"""Orders from elsewhere: what a test in another process asks of a running exchange, by WebSocket on ``/control``.

::

    {"type":"inject","fault":"drop","product":"BTC-USD","kind":"match","count":2}  ->  {"type":"injected"}
    {"type":"summary"}                                                            ->  {"type":"summary", …}
    {"type":"book","product_id":"BTC-USD"}                                        ->  {"type":"book","bids":…,"asks":…}
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from feature_repo.errors import VolspikeError

if TYPE_CHECKING:
    from ingestion.exchange.server import Exchange


def answer(exchange: Exchange, data: str | bytes) -> str:
    """Do what is asked and return the answer; what can't be done is answered by ``error``."""
    try:
        return json.dumps(_answer(exchange, json.loads(data)))
    except (VolspikeError, ValueError, KeyError, TypeError, AttributeError) as error:
        return json.dumps({"type": "error", "message": f"{type(error).__name__}: {error}"})


def _answer(exchange: Exchange, said: dict[str, Any]) -> dict[str, Any]:
    match said.pop("type"):
        case "inject":
            exchange.inject(said.pop("fault"), **said)
            return {"type": "injected"}
        case "summary":
            return {"type": "summary", **exchange.summary.as_dict()}
        case "book":
            product = said["product_id"]
            bids, asks = exchange.book(product)
            return {"type": "book", "product_id": product, "bids": bids, "asks": asks}
        case other:
            raise ValueError(f"type must be inject, summary or book, was {other!r}")

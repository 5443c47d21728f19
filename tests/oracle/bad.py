"""Lines that can't be used, each for one reason, and lines that look odd and can."""

from __future__ import annotations

import json
from typing import Any

from tests.oracle.tapes import MS, START_NS, S, iso, line, match, quoted, snapshot, ticker, update

T = START_NS + 500 * MS


def _changed(message: dict[str, Any], **fields: Any) -> bytes:
    return line({k: v for k, v in (message | fields).items() if v is not ...})


def _numbers() -> dict[str, bytes]:
    bad = {"NaN": "NaN", "infinity": "Infinity", "inf": "-inf", "overflow": "1e400", "zero": "0", "zero_dot": "0.000",
           "negative": "-5", "word": "abc", "empty": "", "hex": "0x10", "underflow": "1e-400"}  # fmt: skip
    found = {f"ticker_price_{name}": _changed(ticker(T), price=text) for name, text in bad.items()}
    found |= {f"match_price_{name}": _changed(match(T, 1), price=text) for name, text in bad.items()}
    sizes = {name: text for name, text in bad.items() if name not in ("zero", "zero_dot", "underflow")}
    found |= {f"match_size_{name}": _changed(match(T, 1), size=text) for name, text in sizes.items()}
    found |= {f"l2_price_{name}": line(update(T, ("buy", text, 1))) for name, text in bad.items()}
    found |= {f"l2_size_{name}": line(update(T, ("buy", 1, text))) for name, text in sizes.items()}
    found |= {f"snapshot_price_{name}": line(snapshot([(text, 1)], [(9, 1)])) for name, text in bad.items()}
    found |= {f"ticker_bid_{name}": line(ticker(T, 5, bid=text, ask=6)) for name, text in bad.items()}
    return found | {f"json_{text}": line(ticker(T)).replace(b'"100.0"', text.encode())
                    for text in ("NaN", "Infinity", "-Infinity", "1e400")}  # fmt: skip


def _fields() -> dict[str, bytes]:
    required = {
        "ticker": (ticker(T), ("product_id", "price", "time")),
        "match": (match(T, 1), ("product_id", "price", "size", "side", "trade_id", "time")),
        "l2update": (update(T, ("buy", 1, 1)), ("product_id", "changes", "time")),
        "snapshot": (snapshot([(1, 1)], [(2, 1)]), ("product_id", "bids", "asks")),
    }
    found = {}
    for kind, (message, names) in required.items():
        for name in names:
            found[f"{kind}_without_{name}"] = _changed(message, **{name: ...})
            found[f"{kind}_null_{name}"] = _changed(message, **{name: None})
            found[f"{kind}_object_{name}"] = _changed(message, **{name: {"a": 1}})
    found["l2_side"] = line(update(T, ("middle", 1, 1)))
    found["match_side"] = line(match(T, 1, maker="both"))
    found["l2_two_fields"] = _changed(update(T), changes=[["buy", "1"]])
    found["product_number"] = _changed(ticker(T), product_id=5)
    return found


def _times() -> dict[str, bytes]:
    bad = {"no_zone": iso(T)[:-1], "date_only": "2023-11-14", "february_30": "2023-02-30T00:00:00Z",
           "hour_25": "2023-11-14T25:00:00Z", "words": "yesterday", "empty": "", "number": 1_700_000_000,
           "picoseconds": "2023-11-14T22:13:20.123456789012Z"}  # fmt: skip
    return {f"time_{name}": _changed(ticker(T), time=value) for name, value in bad.items()}


def _shapes() -> dict[str, bytes]:
    good = line(ticker(T))
    return {
        "truncated": good[: len(good) // 2] + b"\n", "not_utf8": good.replace(b"BTC", b"B\xff\xfe"),
        "not_json": b"hello\n", "array": b"[1,2]\n", "number": b"5\n", "null": b"null\n", "text": b'"ticker"\n',
        "two_objects": good.strip() * 2 + b"\n", "trailing": good.strip() + b"x\n",
        "binary": bytes(range(128, 200)) + b"\n",
        "long_truncated": b'{"type":"ticker","x":"' + b"y" * 10_000_000 + b"\n",
        "raw_not_json": line({"ts": T / S, "pair": "BTC-USD", "raw": "{"}),
        "raw_repeated_key": line({"ts": T / S, "pair": "BTC-USD", "raw": good.decode().replace('"price"', '"time"')}),
    }  # fmt: skip


def malformed() -> dict[str, bytes]:
    """Lines that must be counted as malformed and change nothing."""
    return _numbers() | _fields() | _times() | _shapes()


def usable() -> list[bytes]:
    """Lines that are unusual but right: they must be used, or be ignored as unknown."""
    t, text = T + 30 * S, line(quoted(T + 41 * S, 7.0)).decode()
    offsets = (("+02:00", 7200), ("-11:30", -41_400), ("+00:00", 0))
    shifted = [iso(t + i * 10 * MS + add * S)[:-1] + zone for i, (zone, add) in enumerate(offsets)]
    return [
        *(_changed(quoted(t, 8.0), time=when) for when in shifted),
        *(_changed(quoted(t, 6.0 + digits), time=iso(t + (1 + digits) * S, digits)) for digits in (1, 3, 7)),
        _changed(quoted(t, 6.5), time=iso(t + 9 * S)[:19] + "Z"),
        _changed(quoted(t + 10 * S, 7.5), colour="blue", nested={"a": [1, {"b": None}]}),
        line({"type": "status", "products": []}),
        line({"channel": "candles", "sequence_num": 1, "events": []}),
        text.replace('"price":"7.0"', '"price":"7.25e0"').replace("\n", "  \r\n").encode(),
        json.dumps(quoted(t + 12 * S, 7.75) | {"pad": "y" * 10_000_000}).encode() + b"\n",
    ]  # fmt: skip


def mixed() -> list[bytes]:
    """Good lines with every bad one between them, and the unusual ones at the end."""
    out = []
    for i, text in enumerate(malformed().values()):
        if i % 5 == 0:
            out.append(line(quoted(START_NS + i * 100 * MS, 100 + i % 7, sizes=(1 + i % 3, 2))))
        out.append(text)
    return out + usable()

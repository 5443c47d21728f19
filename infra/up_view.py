"""What ``volspike up`` shows: one line a product, from what any reader of the system sees."""

from __future__ import annotations

import json
import time
import urllib.error
import urllib.request
from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import dataclass
from threading import Event, Thread
from typing import TYPE_CHECKING, Any, Final

from feature_repo.errors import StoreError

if TYPE_CHECKING:
    from rich.table import Table

    from ingestion.online import OnlineTable

RATE_S: Final = 10.0
"""Seconds over which messages a second are taken."""
BOOKS: Final = {0: "none", 1: "synced", 2: "resyncing", 3: "stale"}
_SHOWN: Final = ("mid", "spread", "book_state", "coverage_s")


@dataclass(frozen=True, slots=True)
class Line:
    """One product as it stands.

    Attributes
    ----------
    product_id
        The product.
    mid, spread_bps
        Of its newest row; None where null.
    book
        State of its book.
    coverage_s
        Seconds without a gap behind the row, at most 900.
    age_s
        Age of the row against the clock in force.
    rate
        Messages a second in the log.
    probability
        Of a spike in the next 60 s; None where there is none, then ``status`` says why.
    status
        What the service says.
    """

    product_id: str
    mid: float | None = None
    spread_bps: float | None = None
    book: str = "none"
    coverage_s: float | None = None
    age_s: float | None = None
    rate: float = 0.0
    probability: float | None = None
    status: str = ""


class Counted:
    """Counts the log's messages by product, from its end on, in a thread of its own."""

    def __init__(self, servers: str, topic: str) -> None:
        self._servers, self._topic = servers, topic
        self.total: Counter[str] = Counter()
        self._past: deque[tuple[float, Counter[str]]] = deque(maxlen=64)
        self._stop = Event()
        self._thread = Thread(target=self._run, name="count", daemon=True)
        self._thread.start()

    def rates(self) -> dict[str, float]:
        """Messages a second by product, over the last seconds."""
        now = time.monotonic()
        self._past.append((now, Counter(self.total)))
        while len(self._past) > 2 and now - self._past[0][0] > RATE_S:
            self._past.popleft()
        then, before = self._past[0]
        return {p: (n - before[p]) / max(now - then, 1e-9) for p, n in self._past[-1][1].items()} if now > then else {}

    def close(self) -> None:
        """Stop counting."""
        self._stop.set()
        self._thread.join(5)

    def _run(self) -> None:
        from confluent_kafka import OFFSET_END, TopicPartition

        from ingestion import kafka

        reader = kafka.consumer("volspike-up", self._servers)
        try:
            partitions = reader.list_topics(self._topic, 10).topics[self._topic].partitions
            reader.assign([TopicPartition(self._topic, p, OFFSET_END) for p in partitions])
            while not self._stop.is_set():
                for message in reader.consume(2000, 0.2):
                    if message.error() is None and message.key() is not None:
                        self.total[message.key().decode()] += 1
        finally:
            reader.close()


class Watcher:
    """Reads what is shown: rows from Redis, rates from the log, probabilities from the service.

    Parameters
    ----------
    products
        Products to show.
    online
        The online store.
    counted
        The log's messages.
    service
        Address of the service; empty for none.
    stream_clock
        Whether ages are against the newest row of all, not the machine's clock.
    """

    def __init__(
        self, products: Sequence[str], online: OnlineTable, counted: Counted, service: str, *, stream_clock: bool
    ) -> None:
        self._products, self._online, self._counted = list(products), online, counted
        self._service, self._stream_clock = service, stream_clock

    def look(self) -> list[Line]:
        """Return each product as it stands; one without a row has only its rate."""
        try:
            rows = self._online.read(self._products, _SHOWN)
        except StoreError:
            rows = {}
        there = {p: row for p, row in rows.items() if row is not None}
        newest = max((row.row_time.timestamp() for row in there.values()), default=0.0)
        now = newest if self._stream_clock else time.time()
        rates, answers = self._counted.rates(), self._ask()
        lines = []
        for product in self._products:
            row, answer = there.get(product), answers.get(product, {})
            rate, probability = rates.get(product, 0.0), answer.get("spike_probability")
            status = str(answer.get("status", "" if answers else "no service" if not self._service else "starting"))
            if row is None:
                lines.append(Line(product, rate=rate, probability=probability, status=status))
                continue
            spread = row.values["spread"]
            lines.append(
                Line(
                    product,
                    mid=row.values["mid"],
                    spread_bps=None if spread is None else spread * 1e4,
                    book=BOOKS.get(int(row.values["book_state"] or 0), "none"),
                    coverage_s=row.values["coverage_s"],
                    age_s=now - row.row_time.timestamp(),
                    rate=rate,
                    probability=probability,
                    status=status,
                )
            )
        return lines

    def _ask(self) -> dict[str, dict[str, Any]]:
        if not self._service:
            return {}
        body = json.dumps({"product_ids": self._products}).encode()
        request = urllib.request.Request(  # noqa: S310 - our own loopback address
            f"{self._service}/predict_batch", body, {"content-type": "application/json"}
        )
        try:
            with urllib.request.urlopen(request, timeout=1) as answer:  # noqa: S310
                found = json.load(answer)
        except urllib.error.HTTPError as error:
            said = json.load(error)
            return {p: {"status": said.get("status") or said.get("title", "")} for p in self._products}
        except (OSError, json.JSONDecodeError):
            return {}
        items = found["predictions"] if isinstance(found, dict) else found
        return {item["product_id"]: item for item in items}


def table(lines: Sequence[Line], title: str) -> Table:
    """Return the lines as a table for a terminal."""
    from rich.table import Table

    shown = Table(title=title, title_justify="left")
    for name in ("product", "mid", "spread bps", "book", "coverage s", "row age s", "messages/s", "P(spike in 60 s)"):
        shown.add_column(name, justify="left" if name in ("product", "book") else "right")
    for line in lines:
        shown.add_row(*cells(line))
    return shown


def cells(line: Line) -> list[str]:
    """Return a line's values as text.

    Examples
    --------
    >>> cells(Line("BTC-USD", 97000.5, 0.103, "synced", 900.0, 0.21, 312.4, 0.0312, "ok"))
    ['BTC-USD', '97,000.5', '0.103', 'synced', '900', '0.21', '312', '0.031']
    >>> cells(Line("ETH-USD", rate=3.0, status="missing"))
    ['ETH-USD', '–', '–', 'none', '–', '–', '3', 'missing']
    """

    def number(value: float | None, form: str) -> str:
        return "–" if value is None else format(value, form)

    return [
        line.product_id,
        number(line.mid, ",.10g"),
        number(line.spread_bps, ".3g"),
        line.book,
        number(line.coverage_s, ".0f"),
        number(line.age_s, ".2f"),
        number(line.rate, ".0f"),
        line.status if line.probability is None else f"{line.probability:.3f}",
    ]

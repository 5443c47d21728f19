"""Faults on demand: what may go wrong between an exchange and its clients, drawn from a seed.

A specification is a list such as ``drop=0.001,late=0.01:3s,disconnect=every:30s,refuse=level2_batch``: fault, chance
per message (or ``every:`` so many seconds), after a colon its length, after ``@`` the kinds of message it may meet
(joined by ``+``), after ``/`` the products. The same seed, feed and connections give the same faults.
"""

from __future__ import annotations

import random
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Final

from feature_repo.errors import UsageError
from ingestion.exchange.feeds import MARKET_KINDS

ON_MESSAGES: Final = {
    "drop": "a message isn't sent",
    "double": "a message is sent twice",
    "swap": "a message is sent after the one that follows it",
    "late": "a message is held back, 1 s unless told, and sent with its own time",
    "future": "a message bears a time ahead, 60 s unless told",
    "truncate": "a message is cut off somewhere inside",
    "garbage": "a frame of noise comes before a message",
}
ON_CONNECTIONS: Final = {
    "disconnect": "the connection is cut without a word",
    "cut": "the connection is cut in the middle of a frame",
    "stall": "nothing is sent for a while, 2 s unless told; then all of it",
    "half_open": "nothing is sent nor answered any more, and nothing closed",
}
ON_REQUESTS: Final = {
    "no_snapshot": "a level 2 subscription gets no snapshot",
    "refuse": "a subscription is refused; the value names its channel",
    "reject": "a connection is refused with HTTP 503",
}
FAULTS: Final = {**ON_MESSAGES, **ON_CONNECTIONS, **ON_REQUESTS}
_LENGTH_S: Final = {"late": 1.0, "future": 60.0, "stall": 2.0}
_KINDS: Final = frozenset((*MARKET_KINDS, "heartbeat", "snapshot", "last_match", "subscriptions"))


@dataclass(frozen=True, slots=True)
class Rule:
    """One fault and when it comes.

    Attributes
    ----------
    fault
        A key of ``FAULTS``.
    chance
        Of each message, connection or request it may meet.
    every_s
        Seconds between occurrences on a connection, instead of a chance.
    length_s
        Of ``late``, ``future`` and ``stall``.
    kinds, products
        Messages it may meet; no products means all.
    channel
        Of ``refuse``, as the client names it.
    """

    fault: str
    chance: float = 0.0
    every_s: float | None = None
    length_s: float = 0.0
    kinds: frozenset[str] = frozenset(MARKET_KINDS)
    products: frozenset[str] = frozenset()
    channel: str = ""

    def meets(self, kind: str, product: str) -> bool:
        """Whether it may touch such a message."""
        return kind in self.kinds and (not self.products or product in self.products)


@dataclass(slots=True)
class Order:
    """A fault asked for by hand: the next ``count`` messages, requests or handshakes that its rule meets."""

    rule: Rule
    count: int = 1
    connection: int | None = None


@dataclass(frozen=True, slots=True)
class Faults:
    """The faults of one exchange.

    Attributes
    ----------
    rules
        In the order given.
    seed
        Of all chances.

    Examples
    --------
    >>> [r.fault for r in Faults.parse("drop=0.001,stall=every:20s:2s,refuse=level2_batch").rules]
    ['drop', 'stall', 'refuse']
    """

    rules: tuple[Rule, ...] = ()
    seed: int = 0

    @classmethod
    def parse(cls, text: str, seed: int = 0) -> Faults:
        """Read a specification, as in the module's docstring.

        Raises
        ------
        UsageError
            If it can't be read; it names the part.
        """
        return cls(tuple(_rule(part.strip()) for part in text.split(",") if part.strip()), seed)

    def on(self, faults: Iterable[str]) -> tuple[Rule, ...]:
        """Return the rules about some faults."""
        wanted = frozenset(faults)
        return tuple(rule for rule in self.rules if rule.fault in wanted)


def order(
    fault: str,
    *,
    count: int = 1,
    product: str | None = None,
    kind: str | None = None,
    seconds: float | None = None,
    channel: str = "",
    connection: int | None = None,
) -> Order:
    """Make the order for faults by hand.

    Raises
    ------
    UsageError
        If an argument is unknown or out of its range.
    """
    if fault not in FAULTS:
        raise UsageError(f"fault must be one of {', '.join(FAULTS)}, was {fault!r}: choose one of them")
    if count < 1:
        raise UsageError(f"count must be >= 1, was {count}: say how many messages shall meet the fault")
    rule = Rule(
        fault,
        length_s=_LENGTH_S.get(fault, 0.0) if seconds is None else seconds,
        kinds=frozenset(MARKET_KINDS) if kind is None else _kinds(kind),
        products=frozenset() if product is None else frozenset((product,)),
        channel=channel,
    )
    return Order(rule, count, connection)


@dataclass(slots=True)
class Draw:
    """The chances of one connection.

    Attributes
    ----------
    faults
        Of the exchange.
    connection
        Its number; each has its own chances.
    start_s
        When it began, s on the clock that is asked later.
    """

    faults: Faults
    connection: int
    start_s: float
    rng: random.Random = field(init=False)
    _rules: tuple[Rule, ...] = field(init=False)
    _next: dict[int, float] = field(init=False)

    def __post_init__(self) -> None:
        self.rng = random.Random(f"{self.faults.seed}/{self.connection}")  # noqa: S311 - repeatable, not secret
        self._rules = self.faults.on({**ON_MESSAGES, **ON_CONNECTIONS})
        self._next = {i: self.start_s + rule.every_s for i, rule in enumerate(self._rules) if rule.every_s is not None}

    @property
    def any(self) -> bool:
        """Whether there are chances at all."""
        return bool(self._rules)

    def message(self, kind: str, product: str, now_s: float) -> Rule | None:
        """Draw for one message: at most one fault meets it."""
        for i, rule in enumerate(self._rules):
            if rule.every_s is None:
                if rule.meets(kind, product) and self.rng.random() < rule.chance:
                    return rule
            elif rule.fault in ON_MESSAGES and now_s >= self._next[i] and rule.meets(kind, product):
                self._next[i] = now_s + rule.every_s
                return rule
        return None

    def due(self, now_s: float) -> Rule | None:
        """Return a fault of the whole connection whose time has come, whether or not anything is sent."""
        for i, rule in enumerate(self._rules):
            if rule.every_s is not None and rule.fault in ON_CONNECTIONS and now_s >= self._next[i]:
                self._next[i] = now_s + rule.every_s
                return rule
        return None

    def request(self, fault: str, product: str = "", channel: str = "") -> bool:
        """Draw for one request, product by product."""
        return any(
            rule.channel in ("", channel)
            and (not rule.products or product in rule.products)
            and self.rng.random() < rule.chance
            for rule in self.faults.on((fault,))
        )


def _rule(text: str) -> Rule:
    rest, _, products = text.partition("/")
    rest, _, kinds = rest.partition("@")
    fault, _, value = rest.partition("=")
    value, *more = value.split(":")
    every = more.pop(0) if value == "every" and more else None
    if fault not in FAULTS or not value or len(more) > 1 or (value == "every") != (every is not None):
        raise UsageError(
            f"faults: {text!r} isn't understood; expected such as drop=0.001, late=0.01:3s, disconnect=every:30s or "
            f"refuse=level2_batch, of {', '.join(FAULTS)}"
        )
    rule = Rule(
        fault,
        length_s=_number(text, more[0].removesuffix("s"), 0.0, 1e6) if more else _LENGTH_S.get(fault, 0.0),
        kinds=_kinds(kinds) if kinds else frozenset(MARKET_KINDS),
        products=frozenset(products.split("+")) if products else frozenset(),
    )
    if every is not None:
        if fault in ON_REQUESTS:
            raise UsageError(f"faults: {fault} can't come every so often, only by chance; write {fault}=1")
        return replace(rule, every_s=_number(text, every.removesuffix("s"), 1e-3, 1e9))
    if fault == "refuse":
        return replace(rule, channel=value, chance=1.0)
    return replace(rule, chance=_number(text, value, 0.0, 1.0))


def _number(text: str, value: str, least: float, most: float) -> float:
    try:
        number = float(value)
    except ValueError:
        number = float("nan")
    if not least <= number <= most:
        raise UsageError(
            f"faults: {value!r} in {text!r} must be a number from {least:g} to {most:g}, or every:SECONDSs"
        )
    return number


def _kinds(text: str) -> frozenset[str]:
    kinds = frozenset(text.split("+"))
    if kinds == {"all"}:
        return _KINDS
    if unknown := sorted(kinds - _KINDS):
        raise UsageError(
            f"kinds {', '.join(unknown)} are unknown; expected all, or some of {', '.join(sorted(_KINDS))}"
        )
    return kinds

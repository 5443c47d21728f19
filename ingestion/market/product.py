"""One product's messages: its book, its trades and the texts of what it sends."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from itertools import chain, repeat

import numpy as np
from numpy.typing import NDArray

from ingestion.market.book import Side
from ingestion.market.parameters import Parameters
from ingestion.market.process import rng

_UNIT = 100_000_000
"""Sizes are counted in units of 1e-8 of the base currency, Coinbase's least increment."""
_TOP = 15
"""Depth noise touches the best levels only: what lies deeper hardly changes in a real book's first seconds."""
_BLOCK = 8192

Sent = tuple[int, str, bytes]


def _endless(draw: Callable[[int], NDArray[np.generic]]) -> Callable[[], float]:
    """Return a function that gives one number a call, drawn a block at a time."""
    return chain.from_iterable(draw(_BLOCK).tolist() for _ in repeat(None)).__next__


class ProductFeed:
    """Book and trades of one product, told as messages.

    Parameters
    ----------
    seed
        Seed of the tape.
    product
        Product id.
    start_us
        Start of the tape, µs since the epoch.
    parameters
        Of the market.
    """

    def __init__(self, seed: int, product: str, start_us: int, parameters: Parameters) -> None:
        self.product = product
        self.parameters = parameters
        self.scale = parameters.products[product]
        self.start_us = start_us
        self.tick = 10**self.scale.decimals
        self._price = _Prices(self.scale.decimals)
        self.trade_id = self.scale.first_trade_id
        self.sequence = 40 * self.scale.first_trade_id
        self.recv_us = start_us
        size = self.scale.size_median * _UNIT
        levels, fills = rng(seed, product, "levels"), rng(seed, product, "fills")
        self._size = _endless(lambda n: np.rint(10 * size * np.exp(levels.standard_normal(n))) + 1_000)
        self._fill = _endless(lambda n: np.rint(size * np.exp(1.8 * fills.standard_normal(n))) + 100)
        self._u = _endless(rng(seed, product, "choices").random)
        self._gap = _endless(rng(seed, product, "gaps").standard_exponential)
        feed = parameters.feed
        wait = rng(seed, product, "latency")
        self._latency = _endless(
            lambda n: np.maximum(
                1_000 * feed.latency_median_ms * np.exp(feed.latency_log_sd * wait.standard_normal(n)),
                1_000 * feed.latency_min_ms,
            )
        )
        # Levels stand a median move apart on average: a move eats one or two.
        self._spacing = max(1.0, self.scale.jump_median * self.scale.price * self.tick)
        bid = round(self.scale.price * self.tick)
        self.bids, self.asks = Side(-1), Side(1)
        for side, best in ((self.bids, -bid), (self.asks, bid + 1)):
            key = best
            for level in range(self.scale.levels):
                side.set(key, int(self._size()))
                # Wider apart with depth, so that the book spans a few percent.
                key += 1 + int(self._gap() * self._spacing * (0.5 + level / 40))
            side.take_changes()
        day = self.scale.size_median * 86_400 * 8 * self.scale.orders_per_s
        self.volume_24h, self.volume_30d = day, 30 * day
        self.open = self.low = self.high = bid

    # What is sent

    def opening(self) -> Iterator[Sent]:
        """Yield ``last_match`` and ``snapshot``, as after subscribing."""
        self.recv_us = self.start_us + 5_000
        when = _iso(np.array([self.start_us - 1_000_000]))[0]
        yield self._sent(
            self._match("last_match", "sell", self._price[self.open + 1], _amount(120_000), when)
        )
        sides = (
            ",".join(f'["{self._price[side.sign * k]}","{_amount(side.sizes[k])}"]' for k in side.keys)
            for side in (self.bids, self.asks)
        )
        bids, asks = sides
        self.recv_us += 5_000
        yield self._sent(f'{{"type":"snapshot","product_id":"{self.product}","bids":[{bids}],"asks":[{asks}]}}')

    def run(
        self,
        times_us: NDArray[np.int64],
        orders: NDArray[np.bool_],
        jumps: NDArray[np.int64],
        spreads: NDArray[np.int64],
        noises: NDArray[np.bool_],
        seconds: int,
    ) -> Iterator[Sent]:
        """Yield the messages of the active slots and the heartbeats between them.

        Parameters
        ----------
        times_us
            int64[m], event times of the slots in which something happens, rising.
        orders, jumps, spreads, noises
            [m]: whether a taker order comes; ticks the best bid moves, 0 for none; spread in ticks after a move;
            whether depth changes for no reason.
        seconds
            Heartbeats to send, one a second.
        """
        beats = self.start_us + 1_000_000 * np.arange(seconds) + 150_000 + int(self._u() * 800_000)
        beat_iso, beat_us, beat = _iso(beats), [*beats.tolist(), math.inf], 0
        uniform, side_of = self._u, {True: self.asks, False: self.bids}
        for t, when, order, jump, spread, noise in zip(
            times_us.tolist(),
            _iso(times_us),
            orders.tolist(),
            jumps.tolist(),
            spreads.tolist(),
            noises.tolist(),
            strict=True,
        ):
            while beat_us[beat] <= t:
                yield self._heartbeat(int(beat_us[beat]), beat_iso[beat])
                beat += 1
            self._arrive(t)
            buy = uniform() < 0.5
            fills: list[tuple[int, int]] = []
            if order:
                fills = self._take(buy)
            if jump:
                gone = self._move(jump, spread, buy)
                if gone and fills:
                    # The order swept the side it took from: its later fills came from the levels that went.
                    side = side_of[buy]
                    fills = [
                        (side.sign * gone[i * len(gone) // len(fills)], size) for i, (_, size) in enumerate(fills)
                    ]
            if noise:
                for _ in range(1 + int(3 * uniform())):
                    self._shuffle()
            changes = self._changes()
            if changes:
                yield self._sent(
                    f'{{"type":"l2update","product_id":"{self.product}","changes":[{changes}],"time":"{when}"}}'
                )
            if fills:
                yield from self._trades(fills, buy, when)
        while beat < seconds:
            yield self._heartbeat(int(beat_us[beat]), beat_iso[beat])
            beat += 1

    def _arrive(self, event_us: int) -> None:
        # One socket keeps the order: what is late holds up what follows.
        self.recv_us = max(self.recv_us + 10, event_us + int(self._latency()))

    def _sent(self, text: str) -> Sent:
        self.recv_us += 10
        return self.recv_us * 1_000, self.product, text.encode()

    def _heartbeat(self, t: int, when: str) -> Sent:
        self._arrive(t)
        self.sequence += 1
        return self._sent(
            f'{{"type":"heartbeat","last_trade_id":{self.trade_id},"product_id":"{self.product}",'
            f'"sequence":{self.sequence},"time":"{when}"}}'
        )

    def _trades(self, fills: list[tuple[int, int]], buy: bool, when: str) -> Iterator[Sent]:
        taker, maker = ("buy", "sell") if buy else ("sell", "buy")
        price_of, first = self._price, self.parameters.feed.ticker_first
        quote = (
            f'"best_bid":"{price_of[self.bids.best]}","best_bid_size":"{_amount(self.bids.best_size)}",'
            f'"best_ask":"{price_of[self.asks.best]}","best_ask_size":"{_amount(self.asks.best_size)}",'
            f'"side":"{taker}","time":"{when}","trade_id":'
        )
        for price, size in fills:
            self.trade_id += 1
            self.sequence += 3
            self.volume_24h += size / _UNIT
            self.volume_30d += size / _UNIT
            if price < self.low:
                self.low = price
            elif price > self.high:
                self.high = price
            paid, much = price_of[price], _amount(size)
            match = self._match("match", maker, paid, much, when)
            ticker = (
                f'{{"type":"ticker","sequence":{self.sequence},"product_id":"{self.product}","price":"{paid}",'
                f'"open_24h":"{price_of[self.open]}","volume_24h":"{self.volume_24h:.8f}",'
                f'"low_24h":"{price_of[self.low]}","high_24h":"{price_of[self.high]}",'
                f'"volume_30d":"{self.volume_30d:.8f}",{quote}{self.trade_id},"last_size":"{much}"}}'
            )
            if self._u() < first:
                match, ticker = ticker, match
            yield self._sent(match)
            yield self._sent(ticker)

    def _match(self, kind: str, maker: str, price: str, size: str, when: str) -> str:
        ids = f"{self.trade_id:08x}-0000-4000-8000-{self.sequence:012x}"
        return (
            f'{{"type":"{kind}","trade_id":{self.trade_id},"maker_order_id":"{ids}","taker_order_id":"{ids}",'
            f'"side":"{maker}","size":"{size}","price":"{price}","product_id":"{self.product}",'
            f'"sequence":{self.sequence},"time":"{when}"}}'
        )

    # What happens in the book

    def _take(self, buy: bool) -> list[tuple[int, int]]:
        """Fill an order at the best price, never eating the whole level: only moves move the quote."""
        side = self.asks if buy else self.bids
        o, count = self.parameters.observation, 1
        while count < o.max_fills and self._u() < o.more_fills:
            count += 1
        there = side.best_size
        if there <= 2 * count:
            there += int(self._size())
        most = max(1, there * 9 // (10 * count))
        sizes = [min(int(self._fill()), most) for _ in repeat(None, count)]
        side.set(side.keys[0], there - sum(sizes))
        return [(side.best, size) for size in sizes]

    def _move(self, jump: int, spread: int, up: bool) -> list[int]:
        """Move the quote; return the keys of the levels that went from the side it moved into."""
        bid = self.bids.best + (jump if up else -jump)
        # A price can't fall to nothing: it turns back there. In a tape of days this never happens.
        bid = max(bid, 100)
        ask = bid + spread
        into, behind = (self.asks, self.bids) if up else (self.bids, self.asks)
        gone: list[int] = []
        for side, best in ((into, ask if up else bid), (behind, bid if up else ask)):
            went = side.retreat(best)
            if side is into:
                gone = went
            if not side.keys or side.keys[0] != side.sign * best:
                side.set(side.sign * best, int(self._size()))
            for _ in went:
                side.set(self._near(side), int(self._size()))
        return gone

    def _near(self, side: Side) -> int:
        # Twelve spacings: where about fifteen levels stand. A bid is never quoted below one tick.
        key = side.keys[0] + 1 + int(self._gap() * 12 * self._spacing)
        return min(key, -1) if side.sign < 0 else key

    def _shuffle(self) -> None:
        """Change one of the top levels for no reason, keeping their number about where it was."""
        side = self.bids if self._u() < 0.5 else self.asks
        kind, at = self._u(), int(_TOP * self._u())
        if kind < 0.6 or (at == 0 and kind >= 0.8):
            side.set(side.keys[min(at, len(side.keys) - 1)], int(self._size()))
        elif len(side.keys) < self.scale.levels:
            side.set(self._near(side), int(self._size()))
        elif kind < 0.8:
            side.set(side.keys[-1], 0)
        else:
            side.set(side.keys[max(1, at)], 0)

    def _changes(self) -> str:
        """Net changes since the last message as JSON, removals first: the book isn't crossed in between either."""
        gone, there, price_of = [], [], self._price
        for name, side in (("buy", self.bids), ("sell", self.asks)):
            if not side.changed:
                continue
            for price, size in side.take_changes():
                if size:
                    there.append(f'["{name}","{price_of[price]}","{size // _UNIT}.{size % _UNIT:08d}"]')
                else:
                    gone.append(f'["{name}","{price_of[price]}","0.00000000"]')
        gone += there
        self.sequence += len(gone)
        return ",".join(gone)


class _Prices(dict[int, str]):
    """Texts of prices in ticks, each made once: half of a tape's numbers are the same few prices."""

    def __init__(self, decimals: int) -> None:
        self.decimals = decimals
        self.tick = 10**decimals

    def __missing__(self, ticks: int) -> str:
        if len(self) > 100_000:
            self.clear()
        text = self[ticks] = f"{ticks // self.tick}.{ticks % self.tick:0{self.decimals}d}"
        return text


def _amount(units: int) -> str:
    return f"{units // _UNIT}.{units % _UNIT:08d}"


def _iso(times_us: NDArray[np.int64]) -> list[str]:
    texts: list[str] = np.char.add(
        np.datetime_as_string(times_us.astype("datetime64[us]"), unit="us"), "Z"
    ).tolist()
    return texts

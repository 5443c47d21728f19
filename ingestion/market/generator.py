"""From hidden volatility to Coinbase Exchange messages, as one connection would have received them.

Channels subscribed: ticker, matches, level2_batch, heartbeat. For demonstration and tests: **what is generated here is
never evidence about a market**, and says so in its first message, its session id (``5eed…``) and its file name.

Per product, time runs in slots of 50 ms (see ``process``). What happens in a slot shares one event time, in this order:
an l2update with all changes, then per fill a match and a ticker. So a ticker's best prices and sizes are the top of the
book at that place in the log. Event times never fall, l2updates of a product are at least 50 ms apart.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from heapq import merge
from operator import itemgetter

import numpy as np

from feature_repo.errors import UsageError
from ingestion.market import process
from ingestion.market.parameters import DEFAULT, SLOT_US, SLOTS_PER_S, Parameters
from ingestion.market.product import ProductFeed

START_NS = 1_764_547_200_000_000_000
"""Default start of a generated tape: 2025-12-01T00:00:00Z."""
PRODUCTS = ("BTC-USD", "ETH-USD", "SOL-USD")
"""Products of the default market."""
SESSION_PREFIX = "5eed"
"""First hex digits of the session id of every generated tape."""
_S_NS = 1_000_000_000
_CHANNELS = ("ticker", "matches", "level2_batch", "heartbeat")


def generate(
    *,
    seed: int,
    seconds: int,
    products: Sequence[str] = PRODUCTS,
    start_ns: int = START_NS,
    parameters: Parameters = DEFAULT,
) -> Iterator[tuple[int, str, bytes]]:
    """Generate the messages of one connection, in the order received.

    Parameters
    ----------
    seed
        Any integer ≥ 0; equal arguments give equal bytes.
    seconds
        Length in event time.
    products
        Products of ``parameters.products``; each one's market depends on the seed and its name only.
    start_ns
        Start in ns since the epoch, UTC; a whole second.
    parameters
        Of the market.

    Returns
    -------
    iterator
        Of ``(receive time in ns, product, message)``; receive times never fall; the product of ``subscriptions`` is "".

    Raises
    ------
    UsageError
        If an argument is out of its range or a product unknown. Raised at the call, not at the first message.
    """
    _check(seed, seconds, products, start_ns, parameters)
    return _messages(seed, seconds, products, start_ns, parameters)


def latent(
    *, seed: int, seconds: int, products: Sequence[str] = PRODUCTS, parameters: Parameters = DEFAULT
) -> dict[str, process.Path]:
    """Return the true hidden path of each product of the tape with this seed; step k is second k of the tape.

    Raises
    ------
    UsageError
        As :func:`generate`.
    """
    _check(seed, seconds, products, START_NS, parameters)
    return {product: process.simulate(seed, product, seconds, parameters.latent) for product in products}


def session_id(
    *,
    seed: int,
    seconds: int,
    products: Sequence[str] = PRODUCTS,
    start_ns: int = START_NS,
    parameters: Parameters = DEFAULT,
) -> str:
    """Return the session of a tape: 16 hex digits, equal exactly where all arguments of :func:`generate` are."""
    said = repr((seed, seconds, tuple(products), start_ns, parameters))
    return SESSION_PREFIX + hashlib.sha256(said.encode()).hexdigest()[: 16 - len(SESSION_PREFIX)]


def _check(seed: int, seconds: int, products: Sequence[str], start_ns: int, parameters: Parameters) -> None:
    if seed < 0:
        raise UsageError(f"seed must be an integer ≥ 0, was {seed}: choose another")
    if seconds <= 0:
        raise UsageError(f"seconds must be > 0, was {seconds}: give the length of the tape")
    if start_ns % _S_NS or start_ns < 0:
        raise UsageError(f"start_ns must be a whole second ≥ 0, was {start_ns}: round it to a multiple of {_S_NS}")
    unknown = [p for p in products if p not in parameters.products]
    if unknown or not products or len(set(products)) != len(products):
        raise UsageError(
            f"products must be one or more different ones of {', '.join(parameters.products)}, "
            f"were {', '.join(products) or 'none'}: correct them or add the product to the parameters"
        )


def _messages(
    seed: int, seconds: int, products: Sequence[str], start_ns: int, parameters: Parameters
) -> Iterator[tuple[int, str, bytes]]:
    ids = ",".join(f'"{p}"' for p in products)
    channels = ",".join(f'{{"name":"{c}","product_ids":[{ids}]}}' for c in _CHANNELS)
    note = f"volspike generated market, seed {seed}: for demonstration and tests, not evidence about a market"
    yield start_ns, "", f'{{"type":"subscriptions","channels":[{channels}],"generated":"{note}"}}'.encode()
    yield from merge(
        *(_product(seed, seconds, p, start_ns, parameters) for p in products),
        key=itemgetter(0),
    )


def _product(
    seed: int, seconds: int, product: str, start_ns: int, parameters: Parameters
) -> Iterator[tuple[int, str, bytes]]:
    """Draw when what happens, then let the product's feed tell it."""
    scale, observation, quiet = parameters.products[product], parameters.observation, parameters.feed.quiet_start_slots
    h = process.simulate(seed, product, seconds, parameters.latent).h
    happens = process.rng(seed, product, "slots").random((seconds * SLOTS_PER_S, 3))
    order = happens[:, 0] < np.repeat(process.order_chance(h, scale, parameters), SLOTS_PER_S)
    move = happens[:, 1] < np.repeat(process.move_chance(h, scale, parameters), SLOTS_PER_S)
    noise = happens[:, 2] < -np.expm1(-observation.noise_per_s / SLOTS_PER_S)
    active = order | move | noise
    active[:quiet] = False
    slots = np.flatnonzero(active)
    h_slot = h[slots // SLOTS_PER_S]

    # Times inside a slot must not fall over a run of adjacent slots, or l2updates would come closer than 50 ms.
    inside = process.rng(seed, product, "inside").integers(0, SLOT_US, size=seconds * SLOTS_PER_S)[slots]
    run = np.cumsum(np.r_[True, np.diff(slots) > 1]) if len(slots) else slots
    inside = np.maximum.accumulate(inside + run * SLOT_US) - run * SLOT_US
    times_us = start_ns // 1000 + slots * SLOT_US + inside

    draws = process.rng(seed, product, "moves")
    z = draws.standard_normal((seconds * SLOTS_PER_S, 2))[slots]
    jump = process.jump_ticks(z[:, 0], h_slot, scale, parameters)
    beyond = np.exp(process.jump_location(scale) - np.log(2.0) + observation.wide_log_sd * z[:, 1])
    widens = process.rng(seed, product, "wide").random(seconds * SLOTS_PER_S)[slots]
    is_wide = widens < process.wide_chance(h_slot, parameters)
    spread = np.where(is_wide, 1 + np.maximum(np.rint(beyond), 1.0), 1.0).astype(np.int64)

    feed = ProductFeed(seed, product, start_ns // 1000, parameters)
    yield from feed.opening()
    yield from feed.run(
        times_us,
        order[slots],
        np.where(move[slots], jump, 0),
        spread,
        noise[slots],
        seconds,
    )

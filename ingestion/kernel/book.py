"""A limit order book for tens of thousands of levels: two sorted lists of small blocks, in flat arrays.

Each side is a list of blocks of at most BLOCK levels, sorted by a key that rises away from the touch (price for
asks, −price for bids), so the best level is the first of the first block. Finding a level is two binary searches;
inserting moves at most BLOCK entries; the ten best levels are read off the front. Nothing is re-sorted, and memory
follows the number of levels. Prices are compared as float64: equal decimals parse to equal doubles.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ingestion.kernel.compiled import entry, inner

BLOCK = 128
TOP = 10

# Columns of Book.meta, per side.
N_BLOCKS = 0
N_FREE = 1
N_LEVELS = 2

BIDS = 0
ASKS = 1


class Book(NamedTuple):
    """Storage of one book; ``order`` lists block ids from the touch outwards, ``first`` their first keys.

    Attributes
    ----------
    key, size
        float64[2, blocks, BLOCK].
    count, order, free
        int64[2, blocks].
    first
        float64[2, blocks].
    meta
        int64[2, 3]: blocks in use, free blocks, levels.
    """

    key: NDArray[np.float64]
    size: NDArray[np.float64]
    count: NDArray[np.int64]
    order: NDArray[np.int64]
    free: NDArray[np.int64]
    first: NDArray[np.float64]
    meta: NDArray[np.int64]


def empty_book(blocks: int = 8) -> Book:
    """Return a book without levels and room for ``blocks`` blocks a side."""
    book = Book(
        key=np.zeros((2, blocks, BLOCK)),
        size=np.zeros((2, blocks, BLOCK)),
        count=np.zeros((2, blocks), np.int64),
        order=np.zeros((2, blocks), np.int64),
        free=np.zeros((2, blocks), np.int64),
        first=np.zeros((2, blocks)),
        meta=np.zeros((2, 3), np.int64),
    )
    clear_book(book)
    return book


def reserve(book: Book, changes: int) -> Book:
    """Return a book of the same content that can take ``changes`` more levels a side without running out of blocks."""
    blocks = book.key.shape[1]
    # Each full block may split at once; after that a further split needs BLOCK/2 more insertions.
    used = int(book.meta[:, N_BLOCKS].max())
    need = used + min(changes, used + changes // (BLOCK // 2)) + 2
    if need <= blocks:
        return book
    grown = empty_book(1 << (need - 1).bit_length())
    for side in (BIDS, ASKS):
        used = int(book.meta[side, N_BLOCKS])
        ids = book.order[side, :used]
        # Blocks are renumbered 0…used−1 in order, so that the free list is simply the rest.
        grown.key[side, :used] = book.key[side, ids]
        grown.size[side, :used] = book.size[side, ids]
        grown.count[side, :used] = book.count[side, ids]
        grown.order[side, :used] = np.arange(used)
        grown.first[side, :used] = book.first[side, :used]
        capacity = grown.key.shape[1]
        grown.free[side, : capacity - used] = np.arange(capacity - 1, used - 1, -1)
        grown.meta[side] = (used, capacity - used, book.meta[side, N_LEVELS])
    return grown


@entry
def clear_book(book):
    """Remove all levels."""
    blocks = book.key.shape[1]
    for side in range(2):
        for i in range(blocks):
            book.free[side, i] = blocks - 1 - i
            book.count[side, i] = 0
        book.meta[side, N_BLOCKS] = 0
        book.meta[side, N_FREE] = blocks
        book.meta[side, N_LEVELS] = 0


@inner
def _new_block(book, side, at):
    """Take a free block and put it into the order at ``at``; return its id."""
    used = book.meta[side, N_BLOCKS]
    book.meta[side, N_FREE] -= 1
    block = book.free[side, book.meta[side, N_FREE]]
    for i in range(used, at, -1):
        book.order[side, i] = book.order[side, i - 1]
        book.first[side, i] = book.first[side, i - 1]
    book.order[side, at] = block
    book.count[side, block] = 0
    book.meta[side, N_BLOCKS] = used + 1
    return block


@inner
def _drop_block(book, side, at):
    """Take the block at ``at`` out of the order and free it."""
    used = book.meta[side, N_BLOCKS]
    book.free[side, book.meta[side, N_FREE]] = book.order[side, at]
    book.meta[side, N_FREE] += 1
    for i in range(at, used - 1):
        book.order[side, i] = book.order[side, i + 1]
        book.first[side, i] = book.first[side, i + 1]
    book.meta[side, N_BLOCKS] = used - 1


@inner
def _merge_next(book, side, at):
    """Pour the block after ``at`` into it where both together fill at most half a block."""
    if at + 1 >= book.meta[side, N_BLOCKS]:
        return
    a = book.order[side, at]
    b = book.order[side, at + 1]
    na = book.count[side, a]
    nb = book.count[side, b]
    if na + nb <= BLOCK // 2:
        for i in range(nb):
            book.key[side, a, na + i] = book.key[side, b, i]
            book.size[side, a, na + i] = book.size[side, b, i]
        book.count[side, a] = na + nb
        _drop_block(book, side, at + 1)


@entry
def set_level(book, side, price, size):
    """Set the size of one level; size 0 removes it.

    Parameters
    ----------
    book
        The book.
    side
        BIDS or ASKS.
    price, size
        float64, quote and base currency.

    Returns
    -------
    int
        0 where a removal named a level that is not there (an unknown delete), else 1.
    """
    key = price if side == ASKS else -price
    used = book.meta[side, N_BLOCKS]
    # The last block whose first key is <= key; most changes fall into the first.
    at = 0
    if used > 1 and key >= book.first[side, 1]:
        lo = 1
        hi = used
        while hi - lo > 1:
            mid = (lo + hi) >> 1
            if book.first[side, mid] <= key:
                lo = mid
            else:
                hi = mid
        at = lo
    if used == 0:
        if size == 0.0:
            return 0
        _new_block(book, side, 0)
    block = book.order[side, at]
    n = book.count[side, block]
    lo = 0
    hi = n
    while lo < hi:
        mid = (lo + hi) >> 1
        if book.key[side, block, mid] < key:
            lo = mid + 1
        else:
            hi = mid
    if lo < n and book.key[side, block, lo] == key:
        if size != 0.0:
            book.size[side, block, lo] = size
            return 1
        for i in range(lo, n - 1):
            book.key[side, block, i] = book.key[side, block, i + 1]
            book.size[side, block, i] = book.size[side, block, i + 1]
        book.count[side, block] = n - 1
        book.meta[side, N_LEVELS] -= 1
        if n == 1:
            _drop_block(book, side, at)
            return 1
        book.first[side, at] = book.key[side, block, 0]
        if n - 1 <= BLOCK // 4:
            _merge_next(book, side, at)
            if at > 0:
                _merge_next(book, side, at - 1)
        return 1
    if size == 0.0:
        return 0
    if n == BLOCK:
        half = BLOCK // 2
        other = _new_block(book, side, at + 1)
        for i in range(half):
            book.key[side, other, i] = book.key[side, block, half + i]
            book.size[side, other, i] = book.size[side, block, half + i]
        book.count[side, block] = half
        book.count[side, other] = half
        book.first[side, at + 1] = book.key[side, other, 0]
        if lo > half:
            at += 1
            block = other
            lo -= half
        n = half
    for i in range(n, lo, -1):
        book.key[side, block, i] = book.key[side, block, i - 1]
        book.size[side, block, i] = book.size[side, block, i - 1]
    book.key[side, block, lo] = key
    book.size[side, block, lo] = size
    book.count[side, block] = n + 1
    book.first[side, at] = book.key[side, block, 0]
    book.meta[side, N_LEVELS] += 1
    return 1


@entry
def best(book, side):
    """Return (price, size) of the best level; (nan, nan) where the side is empty."""
    if book.meta[side, N_BLOCKS] == 0:
        return np.nan, np.nan
    block = book.order[side, 0]
    key = book.key[side, block, 0]
    return (key if side == ASKS else -key), book.size[side, block, 0]


@entry
def depth(book, side, levels):
    """Return the summed size of the ``levels`` best levels, best first."""
    total = 0.0
    left = levels
    for at in range(book.meta[side, N_BLOCKS]):
        block = book.order[side, at]
        for i in range(min(left, book.count[side, block])):
            total += book.size[side, block, i]
        left -= book.count[side, block]
        if left <= 0:
            break
    return total


def levels(book: Book, side: int, most: int | None = None) -> NDArray[np.float64]:
    """Return the levels of a side from the touch outwards.

    Returns
    -------
    float64[m, 2]
        Price and size.
    """
    used = int(book.meta[side, N_BLOCKS])
    ids = book.order[side, :used]
    keys = np.concatenate([book.key[side, i, : book.count[side, i]] for i in ids]) if used else np.zeros(0)
    sizes = np.concatenate([book.size[side, i, : book.count[side, i]] for i in ids]) if used else np.zeros(0)
    out = np.column_stack((keys if side == ASKS else -keys, sizes))
    return out if most is None else out[:most]

"""A limit order book for tens of thousands of levels: two sorted lists of small blocks, in flat arrays.

Each side is a list of blocks of at most BLOCK levels, sorted by a key that rises away from the touch (price for asks,
−price for bids), so the best level is the first of the first block. Finding a level is a search over the blocks' first
keys and one inside the block; inserting moves at most BLOCK entries; the ten best levels are read off the front.
Nothing is re-sorted, and memory follows the number of levels. Prices are compared as float64: equal decimals parse to
equal doubles.

Compiled functions take the book's arrays one by one: members of a tuple would be reference-counted at each use.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ingestion.kernel.compiled import entry, inner

BLOCK = 64
TOP = 10

# Rows of Book.levels, per block.
KEY = 0
SIZE = 1
# Rows of Book.blocks, per side: levels in each block, block ids from the touch outwards, free ids, then the totals.
COUNT = 0
ORDER = 1
FREE = 2
TOTAL = 3
# Columns of the row TOTAL.
N_BLOCKS = 0
N_FREE = 1
N_LEVELS = 2

BIDS = 0
ASKS = 1


class Book(NamedTuple):
    """Storage of one book.

    Attributes
    ----------
    levels
        float64[2 sides, blocks, 2, BLOCK]: keys and sizes.
    first
        float64[2 sides, blocks]: first key of each block, in order from the touch.
    blocks
        int64[2 sides, 4, blocks].
    """

    levels: NDArray[np.float64]
    first: NDArray[np.float64]
    blocks: NDArray[np.int64]


def empty_book(blocks: int = 8) -> Book:
    """Return a book without levels and room for ``blocks`` blocks a side."""
    book = Book(np.zeros((2, blocks, 2, BLOCK)), np.zeros((2, blocks)), np.zeros((2, 4, blocks), np.int64))
    clear_book(book.blocks)
    return book


def reserve(book: Book, changes: int) -> Book:
    """Return a book of the same content that can take ``changes`` more levels a side without running out of blocks."""
    capacity = book.first.shape[1]
    # Each full block may split at once; after that a further split needs BLOCK/2 more insertions.
    used = int(book.blocks[:, TOTAL, N_BLOCKS].max())
    need = used + min(changes, used + changes // (BLOCK // 2)) + 2
    if need <= capacity:
        return book
    grown = empty_book(1 << (need - 1).bit_length())
    capacity = grown.first.shape[1]
    for side in (BIDS, ASKS):
        used = int(book.blocks[side, TOTAL, N_BLOCKS])
        ids = book.blocks[side, ORDER, :used]
        # Blocks are renumbered 0…used−1 in order, so that the free list is simply the rest.
        grown.levels[side, :used] = book.levels[side, ids]
        grown.first[side, :used] = book.first[side, :used]
        grown.blocks[side, COUNT, :used] = book.blocks[side, COUNT, ids]
        grown.blocks[side, ORDER, :used] = np.arange(used)
        grown.blocks[side, FREE, : capacity - used] = np.arange(capacity - 1, used - 1, -1)
        grown.blocks[side, TOTAL, :3] = (used, capacity - used, book.blocks[side, TOTAL, N_LEVELS])
    return grown


@entry
def clear_book(blocks):
    """Remove all levels."""
    capacity = blocks.shape[2]
    for side in range(2):
        for i in range(capacity):
            blocks[side, FREE, i] = capacity - 1 - i
            blocks[side, COUNT, i] = 0
        blocks[side, TOTAL, N_BLOCKS] = 0
        blocks[side, TOTAL, N_FREE] = capacity
        blocks[side, TOTAL, N_LEVELS] = 0


@inner
def _new_block(first, blocks, side, at):
    """Take a free block and put it into the order at ``at``; return its id."""
    used = blocks[side, TOTAL, N_BLOCKS]
    blocks[side, TOTAL, N_FREE] -= 1
    block = blocks[side, FREE, blocks[side, TOTAL, N_FREE]]
    for i in range(used, at, -1):
        blocks[side, ORDER, i] = blocks[side, ORDER, i - 1]
        first[side, i] = first[side, i - 1]
    blocks[side, ORDER, at] = block
    blocks[side, COUNT, block] = 0
    blocks[side, TOTAL, N_BLOCKS] = used + 1
    return block


@inner
def _drop_block(first, blocks, side, at):
    """Take the block at ``at`` out of the order and free it."""
    used = blocks[side, TOTAL, N_BLOCKS]
    blocks[side, FREE, blocks[side, TOTAL, N_FREE]] = blocks[side, ORDER, at]
    blocks[side, TOTAL, N_FREE] += 1
    for i in range(at, used - 1):
        blocks[side, ORDER, i] = blocks[side, ORDER, i + 1]
        first[side, i] = first[side, i + 1]
    blocks[side, TOTAL, N_BLOCKS] = used - 1


@inner
def _merge_next(levels, first, blocks, side, at):
    """Pour the block after ``at`` into it where both together fill at most half a block."""
    if at < 0 or at + 1 >= blocks[side, TOTAL, N_BLOCKS]:
        return
    a = blocks[side, ORDER, at]
    b = blocks[side, ORDER, at + 1]
    na = blocks[side, COUNT, a]
    nb = blocks[side, COUNT, b]
    if na + nb <= BLOCK // 2:
        for i in range(nb):
            levels[side, a, KEY, na + i] = levels[side, b, KEY, i]
            levels[side, a, SIZE, na + i] = levels[side, b, SIZE, i]
        blocks[side, COUNT, a] = na + nb
        _drop_block(first, blocks, side, at + 1)


@inner
def _find_block(first, used, side, key):
    """Return the last place whose first key is <= key, 0 where there is none: near the touch first, then by halves."""
    step = 1
    lo = 0
    while lo + step < used and first[side, lo + step] <= key:
        lo += step
        step *= 2
    hi = min(lo + step, used)
    while hi - lo > 1:
        mid = (lo + hi) >> 1
        if first[side, mid] <= key:
            lo = mid
        else:
            hi = mid
    return lo


@entry
def set_level(levels, first, blocks, side, price, size):
    """Set the size of one level; size 0 removes it.

    Parameters
    ----------
    levels, first, blocks
        The book's arrays.
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
    used = blocks[side, TOTAL, N_BLOCKS]
    at = 0
    if used == 0:
        if size == 0.0:
            return 0
        _new_block(first, blocks, side, 0)
    else:
        at = _find_block(first, used, side, key)
    block = blocks[side, ORDER, at]
    n = blocks[side, COUNT, block]
    lo = 0
    hi = n
    while lo < hi:
        mid = (lo + hi) >> 1
        if levels[side, block, KEY, mid] < key:
            lo = mid + 1
        else:
            hi = mid
    if lo < n and levels[side, block, KEY, lo] == key:
        if size != 0.0:
            levels[side, block, SIZE, lo] = size
            return 1
        for i in range(lo, n - 1):
            levels[side, block, KEY, i] = levels[side, block, KEY, i + 1]
            levels[side, block, SIZE, i] = levels[side, block, SIZE, i + 1]
        blocks[side, COUNT, block] = n - 1
        blocks[side, TOTAL, N_LEVELS] -= 1
        if n == 1:
            _drop_block(first, blocks, side, at)
            return 1
        first[side, at] = levels[side, block, KEY, 0]
        if n - 1 <= BLOCK // 4:
            _merge_next(levels, first, blocks, side, at)
            _merge_next(levels, first, blocks, side, at - 1)
        return 1
    if size == 0.0:
        return 0
    if n == BLOCK:
        half = BLOCK // 2
        other = _new_block(first, blocks, side, at + 1)
        for i in range(half):
            levels[side, other, KEY, i] = levels[side, block, KEY, half + i]
            levels[side, other, SIZE, i] = levels[side, block, SIZE, half + i]
        blocks[side, COUNT, block] = half
        blocks[side, COUNT, other] = half
        first[side, at + 1] = levels[side, other, KEY, 0]
        if lo > half:
            at += 1
            block = other
            lo -= half
        n = half
    for i in range(n, lo, -1):
        levels[side, block, KEY, i] = levels[side, block, KEY, i - 1]
        levels[side, block, SIZE, i] = levels[side, block, SIZE, i - 1]
    levels[side, block, KEY, lo] = key
    levels[side, block, SIZE, lo] = size
    blocks[side, COUNT, block] = n + 1
    first[side, at] = levels[side, block, KEY, 0]
    blocks[side, TOTAL, N_LEVELS] += 1
    return 1


@entry
def best(levels, blocks, side):
    """Return (price, size) of the best level; (nan, nan) where the side is empty."""
    if blocks[side, TOTAL, N_BLOCKS] == 0:
        return np.nan, np.nan
    block = blocks[side, ORDER, 0]
    key = levels[side, block, KEY, 0]
    return (key if side == ASKS else -key), levels[side, block, SIZE, 0]


@entry
def depth(levels, blocks, side, most):
    """Return the summed size of the ``most`` best levels, best first."""
    total = 0.0
    left = most
    for at in range(blocks[side, TOTAL, N_BLOCKS]):
        block = blocks[side, ORDER, at]
        n = min(left, blocks[side, COUNT, block])
        for i in range(n):
            total += levels[side, block, SIZE, i]
        left -= n
        if left <= 0:
            break
    return total


def side_levels(book: Book, side: int, most: int | None = None) -> NDArray[np.float64]:
    """Return the levels of a side from the touch outwards.

    Returns
    -------
    float64[m, 2]
        Price and size.
    """
    ids = book.blocks[side, ORDER, : int(book.blocks[side, TOTAL, N_BLOCKS])]
    rows = [book.levels[side, i, :, : book.blocks[side, COUNT, i]] for i in ids]
    out = np.concatenate(rows, axis=1).T if rows else np.zeros((0, 2))
    if side == BIDS:
        out = out * np.array([-1.0, 1.0])
    return out if most is None else out[:most]

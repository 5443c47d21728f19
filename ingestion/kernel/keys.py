"""Whether a JSON object names a key twice: parsers take the last one silently, so a second price would go unseen.

RFC 8259 (section 4) leaves the meaning of repeated names open; here such a message is malformed. The scan looks at
structure only: a text that is no JSON is found by the decoder.
"""

from __future__ import annotations

import numpy as np

from ingestion.kernel.compiled import entry

_DEPTH = 32
_KEYS = 512
_QUOTE, _BACKSLASH, _COMMA, _OPEN, _CLOSE, _LIST, _UNLIST, _NEWLINE = b'"\\,{}[]\n'


@entry
def _repeats(text, hashes, starts, filters, objects):
    depth = 0
    used = 0
    start = 0
    in_string = False
    escaped = False
    expect_key = False
    for at in range(len(text)):
        c = text[at]
        if in_string:
            if escaped:
                escaped = False
            elif c == _BACKSLASH:
                escaped = True
            elif c == _QUOTE:
                in_string = False
                if expect_key:
                    expect_key = False
                    # FNV-1a over the key as written; an escaped spelling of the same key is taken for another.
                    h = np.uint64(14695981039346656037)
                    for i in range(start, at):
                        h = (h ^ np.uint64(text[i])) * np.uint64(1099511628211)
                    bit = np.uint64(1) << (h >> np.uint64(58))
                    if filters[depth] & bit != np.uint64(0):
                        for i in range(starts[depth], used):
                            if hashes[i] == h:
                                return True
                    filters[depth] |= bit
                    if used < len(hashes):
                        hashes[used] = h
                        used += 1
        elif c == _QUOTE:
            in_string = True
            start = at + 1
        elif c == _COMMA:
            expect_key = objects[depth] == 1
        elif c == _OPEN or c == _LIST:
            if depth + 1 < len(starts):
                depth += 1
            objects[depth] = 1 if c == _OPEN else 0
            starts[depth] = used
            filters[depth] = np.uint64(0)
            expect_key = c == _OPEN
        elif c == _CLOSE or c == _UNLIST:
            used = starts[depth]
            if depth > 0:
                depth -= 1
            expect_key = False
        elif c == _NEWLINE:
            depth = 0
            used = 0
            expect_key = False
    return False


def repeats_a_key(data: bytes) -> bool:
    r"""Tell whether any object in newline-delimited JSON names a key twice.

    Examples
    --------
    >>> repeats_a_key(b'{"price":"1","size":"2"}\n{"price":"3"}')
    False
    >>> repeats_a_key(b'{"price":"1","price":"2"}')
    True
    """
    scratch = (
        np.zeros(_KEYS, np.uint64),
        np.zeros(_DEPTH, np.int64),
        np.zeros(_DEPTH, np.uint64),
        np.zeros(_DEPTH, np.int64),
    )
    return bool(_repeats(np.frombuffer(data, np.uint8), *scratch))

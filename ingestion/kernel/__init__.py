"""The one kernel: decode, book, windows, featurizer and label arithmetic, pure and without I/O."""

from ingestion.kernel.featurizer import Featurizer, Options, StreamResult, stream_rows
from ingestion.kernel.rows import QUOTE_SCHEMA, ROW_SCHEMA, LogRows, Part, Rows

__all__ = [
    "QUOTE_SCHEMA",
    "ROW_SCHEMA",
    "Featurizer",
    "LogRows",
    "Options",
    "Part",
    "Rows",
    "StreamResult",
    "stream_rows",
]

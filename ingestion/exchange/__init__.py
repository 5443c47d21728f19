"""The simulated exchange: both Coinbase dialects over a generated market or a tape, with faults on demand."""

from ingestion.exchange.faults import FAULTS, Faults
from ingestion.exchange.feeds import Feed, Item, Recorded, Synthetic, preloaded
from ingestion.exchange.ledger import Entry, read_ledger
from ingestion.exchange.player import Limits, Summary
from ingestion.exchange.server import Exchange
from ingestion.exchange.taped import Taped

__all__ = [
    "FAULTS",
    "Entry",
    "Exchange",
    "Faults",
    "Feed",
    "Item",
    "Limits",
    "Recorded",
    "Summary",
    "Synthetic",
    "Taped",
    "preloaded",
    "read_ledger",
]

"""A generated market: seeded Coinbase Exchange messages for demonstration and tests, never evidence about a market."""

from ingestion.market.generator import PRODUCTS, START_NS, generate, latent, session_id
from ingestion.market.parameters import DEFAULT, Parameters
from ingestion.market.tape import TapeSummary, tape_name, write_tape

__all__ = [
    "DEFAULT",
    "PRODUCTS",
    "START_NS",
    "Parameters",
    "TapeSummary",
    "generate",
    "latent",
    "session_id",
    "tape_name",
    "write_tape",
]

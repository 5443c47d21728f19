"""Ingestion: from a feed's WebSocket to the raw log, losing nothing."""

from ingestion.feed.pipeline import Order, ingest
from ingestion.feed.report import Report

__all__ = ["Order", "Report", "ingest"]

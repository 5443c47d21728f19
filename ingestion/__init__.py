"""From messages to rows: decoding, books, windows, replay, tables and online writes."""

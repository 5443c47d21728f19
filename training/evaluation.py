"""Figures of a model on one block, under their earlier name; see :mod:`training.metrics`."""

from __future__ import annotations

from training.metrics import BLOCK_S, figures

__all__ = ["BLOCK_S", "figures"]

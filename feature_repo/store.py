"""The feature store as the settings describe it, for code; ``feast`` in this folder opens the same one."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from feature_repo.errors import StoreError
from infra.settings import settings

if TYPE_CHECKING:
    from feast import FeatureStore, RepoConfig

REPO = Path(__file__).resolve().parent
"""Folder of ``feature_store.yaml``."""


def config() -> RepoConfig:
    """Configuration of Feast: ``feature_store.yaml``, with registry, Redis and tables where the settings put them.

    Importing Feast takes seconds, so this is called where it is needed and the result kept.
    """
    from feast.repo_config import load_repo_config

    return load_repo_config(REPO, REPO / "feature_store.yaml")


def store() -> FeatureStore:
    """Open the feature store; one per event loop where the asynchronous reads are used.

    Raises
    ------
    StoreError
        If nothing has been registered yet.
    """
    from feast import FeatureStore

    registry = settings().data / "registry.db"
    if not registry.exists():
        raise StoreError(
            f"feature registry: nothing at {registry}; expected what `feast apply` writes. "
            f"Run `feast apply` in the folder feature_repo, or feature_repo.store.apply()."
        )
    return FeatureStore(config=config())


def apply() -> FeatureStore:
    """Register everything in :mod:`feature_repo.definitions`, as ``feast apply`` does, and open the store."""
    from feast import FeatureStore

    from feature_repo import definitions as d

    opened = FeatureStore(config=config())
    opened.apply([d.project, d.product, d.spike_table, d.spike_push, d.spike_features, *d.services])
    return opened

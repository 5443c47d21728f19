"""Typed settings: one place for every name, default and unit.

Sources, first wins: keyword arguments, environment (``VOLSPIKE_*`` or an alias), ``.env``, ``config.yaml`` at the
repository root, defaults. This module imports nothing of ours, so every room may read it.
"""

from __future__ import annotations

import os
from functools import lru_cache
from pathlib import Path
from typing import Literal

from pydantic import AliasChoices, Field, field_validator
from pydantic_settings import (
    BaseSettings,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    YamlConfigSettingsSource,
)

ROOT = Path(__file__).resolve().parents[1]
"""The repository root: relative paths in settings start here, whatever the working directory."""


def _names(name: str, *others: str) -> AliasChoices:
    return AliasChoices(f"VOLSPIKE_{name}", *others, name.lower())


class Settings(BaseSettings):
    """All settings of volspike. Times carry their unit in the name; paths are absolute after loading."""

    model_config = SettingsConfigDict(
        env_file=ROOT / ".env",
        yaml_file=ROOT / "config.yaml",
        extra="ignore",
        frozen=True,
        populate_by_name=True,
    )

    data: Path = Field(
        default=Path("data"),
        validation_alias=_names("DATA"),
        description="Folder of tapes, tables, models and reports.",
    )
    state: str = Field(
        default="",
        validation_alias=_names("STATE"),
        description="Folder or fsspec URL of checkpoints; empty means <data>/state.",
    )
    clock: Literal["wall", "stream"] = Field(
        default="wall",
        validation_alias=_names("CLOCK"),
        description="What 'now' is: the machine's clock, or the newest row of the stream.",
    )
    pair: str = Field(
        default="BTC-USD,ETH-USD",
        validation_alias=_names("PAIR", "PAIR"),
        description="Products to watch, comma-separated.",
    )
    kafka_servers: str = Field(
        default="",
        validation_alias=_names("KAFKA_SERVERS", "KAFKA_SERVERS"),
        description="Kafka bootstrap servers; empty means the embedded broker.",
    )
    redis_url: str = Field(
        default="",
        validation_alias=_names("REDIS_URL", "REDIS_URL"),
        description="Redis as host:port[,password=…]; empty means the embedded server.",
    )
    redis_port: int = Field(
        default=16379,
        validation_alias=_names("REDIS_PORT"),
        ge=1,
        le=65535,
        description="Port of the embedded Redis.",
    )
    mlflow_tracking_uri: str = Field(
        default="",
        validation_alias=_names("MLFLOW_TRACKING_URI", "MLFLOW_TRACKING_URI"),
        description="MLflow tracking and registry URI; empty means sqlite mlflow.db at the root.",
    )
    experiment_name: str = Field(
        default="volspike",
        validation_alias=_names("EXPERIMENT_NAME"),
        description="MLflow experiment that runs are logged to.",
    )
    model_name: str = Field(
        default="volspike",
        validation_alias=_names("MODEL_NAME"),
        description="Registered model whose alias champion is served.",
    )
    threshold_tau: float | None = Field(
        default=None,
        validation_alias=_names("THRESHOLD_TAU", "THRESHOLD_TAU"),
        description="Absolute spike threshold on sigma_fwd, per second log return; empty means a percentile.",
    )
    threshold_percentile: float = Field(
        default=95.0,
        validation_alias=_names("THRESHOLD_PERCENTILE"),
        gt=0,
        lt=100,
        description="Percentile of sigma_fwd in the training block above which a horizon is a spike.",
    )
    min_coverage_s: float = Field(
        default=900.0,
        validation_alias=_names("MIN_COVERAGE_S"),
        ge=0,
        le=900,
        description="Seconds without a gap that a row must have behind it to be trained on or served.",
    )
    max_feature_age_s: float = Field(
        default=10.0,
        validation_alias=_names("MAX_FEATURE_AGE_S"),
        gt=0,
        description="Age in seconds beyond which a row is too old to be scored.",
    )
    service_port: int = Field(
        default=3000, validation_alias=_names("SERVICE_PORT"), ge=1, le=65535, description="Port of the HTTP service."
    )
    mlflow_port: int = Field(
        default=5000, validation_alias=_names("MLFLOW_PORT"), ge=1, le=65535, description="Port of the MLflow server."
    )
    kafka_port: int = Field(
        default=9092,
        validation_alias=_names("KAFKA_PORT"),
        ge=1,
        le=65535,
        description="Port of the broker that `make kafka` runs.",
    )
    exchange_port: int = Field(
        default=8765,
        validation_alias=_names("EXCHANGE_PORT"),
        ge=1,
        le=65535,
        description="Port of the simulated exchange.",
    )
    partitions: int = Field(
        default=4,
        validation_alias=_names("PARTITIONS"),
        ge=1,
        le=1024,
        description="Partitions of the topics that are made; a product's messages all go to one.",
    )
    feed: str = Field(
        default="exchange",
        validation_alias=_names("FEED"),
        description="Feed to watch: exchange, advanced, or a WebSocket URL (ws:// or wss://).",
    )
    channels: str = Field(
        default="ticker,matches,level2_batch,heartbeat",
        validation_alias=_names("CHANNELS"),
        description="Channels to subscribe, comma-separated, by their names on the Exchange feed.",
    )
    group: str = Field(
        default="volspike-featurize",
        validation_alias=_names("GROUP"),
        description="Kafka consumer group of the featurizers.",
    )
    commit_every_s: float = Field(
        default=10.0,
        validation_alias=_names("COMMIT_EVERY_S"),
        gt=0,
        description="Seconds between commits of the featurizer to the offline tables.",
    )
    checkpoint_every_s: float = Field(
        default=30.0,
        validation_alias=_names("CHECKPOINT_EVERY_S"),
        gt=0,
        description="Seconds between checkpoints of the featurizer.",
    )
    spill_mb: int = Field(
        default=2048,
        validation_alias=_names("SPILL_MB"),
        ge=1,
        description="Megabytes of messages that may wait on disk while the broker is gone.",
    )
    tape_minutes: float = Field(
        default=15.0,
        validation_alias=_names("TAPE_MINUTES"),
        gt=0,
        description="Minutes after which a recorded tape is closed and the next begun.",
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        default="info", validation_alias=_names("LOG_LEVEL"), description="Least level that is logged."
    )
    keep_days: float = Field(
        default=30.0,
        validation_alias=_names("KEEP_DAYS"),
        ge=0,
        description="Days for which recorded tapes and scheduled reports are kept; 0 keeps them for ever.",
    )
    live_delay_ms: float = Field(
        default=250.0,
        validation_alias=_names("LIVE_DELAY_MS"),
        ge=0,
        description="Milliseconds from event to features on the live path at the 99th percentile, as `volspike bench "
        "live` measures them; evaluate tells the skill with features that late.",
    )
    gate_alpha: float = Field(
        default=0.05,
        validation_alias=_names("GATE_ALPHA"),
        gt=0,
        lt=1,
        description="Probability that the gate ever promotes a model that is no better, over all attempts together.",
    )
    max_predict_ms: float = Field(
        default=20.0,
        validation_alias=_names("MAX_PREDICT_MS"),
        gt=0,
        description="Milliseconds that one forecast of a champion may take at the 99th percentile.",
    )
    max_model_mb: float = Field(
        default=50.0,
        validation_alias=_names("MAX_MODEL_MB"),
        gt=0,
        description="Megabytes that a champion's artefact may have.",
    )

    @field_validator("data")
    @classmethod
    def _absolute(cls, value: Path) -> Path:
        return value if value.is_absolute() else ROOT / value

    @field_validator("threshold_tau", mode="before")
    @classmethod
    def _empty_is_none(cls, value: object) -> object:
        return None if value == "" else value

    @field_validator("threshold_tau")
    @classmethod
    def _positive(cls, value: float | None) -> float | None:
        if value is not None and not value > 0:
            raise ValueError(f"threshold_tau must be > 0, was {value}: at 0 every horizon would be a spike")
        return value

    @property
    def products(self) -> tuple[str, ...]:
        """Products to watch."""
        return tuple(p.strip() for p in self.pair.split(",") if p.strip())

    @property
    def watched_channels(self) -> tuple[str, ...]:
        """Channels to subscribe."""
        return tuple(c.strip() for c in self.channels.split(",") if c.strip())

    @property
    def checkpoints(self) -> str:
        """Folder or fsspec URL of the featurizers' checkpoints."""
        return self.state or str(self.data / "state")

    @property
    def raw(self) -> Path:
        """Folder of recorded tapes."""
        return self.data / "raw"

    @property
    def tables(self) -> Path:
        """Folder that holds one Delta table per name of the contract."""
        return self.data / "tables"

    @property
    def models(self) -> Path:
        """Folder of model artefacts as trained, before and beside the registry."""
        return self.data / "models"

    @property
    def reports(self) -> Path:
        """Folder of drift and evaluation reports."""
        return self.data / "reports"

    @property
    def run(self) -> Path:
        """Folder of ``services.json`` and of the logs of embedded services."""
        return self.data / "run"

    @property
    def redis(self) -> str:
        """Connection string of the online store in Feast's form, ``host:port[,option=value]``."""
        return self.redis_url or f"127.0.0.1:{self.redis_port}"

    @property
    def mlflow_uri(self) -> str:
        """Tracking and registry URI."""
        return self.mlflow_tracking_uri or f"sqlite:///{ROOT / 'mlflow.db'}"

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Put ``config.yaml`` behind the environment."""
        return init_settings, env_settings, dotenv_settings, YamlConfigSettingsSource(settings_cls)


@lru_cache(maxsize=1)
def settings() -> Settings:
    """Settings of this process, read once; ``settings.cache_clear()`` reads them again."""
    return Settings()


def child_environment(**extra: str) -> dict[str, str]:
    """Environment for a subprocess that must see the same settings as this process."""
    s = settings()
    shared = {
        "VOLSPIKE_DATA": str(s.data),
        "VOLSPIKE_REDIS_URL": s.redis,
        "VOLSPIKE_MLFLOW_TRACKING_URI": s.mlflow_uri,
        "VOLSPIKE_CLOCK": s.clock,
        **({"VOLSPIKE_KAFKA_SERVERS": s.kafka_servers} if s.kafka_servers else {}),
    }
    return {**os.environ, **shared, **extra}

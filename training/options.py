"""What a training run may be told; the command line, the demo and the tests all fill this in."""

from __future__ import annotations

from dataclasses import dataclass, field

from feature_repo.contract import DEFAULT_SERVICE, SERVICES
from feature_repo.errors import UsageError
from infra.settings import settings


@dataclass(frozen=True, slots=True)
class TrainOptions:
    """Options of label, split and train; defaults come from the settings.

    Attributes
    ----------
    service
        Feast feature service whose features the models read.
    exclude_products, sessions
        Products to leave out; sessions to use, empty for all.
    experiment
        MLflow experiment.
    percentile, tau
        Spike threshold: a percentile of the training block per product, or an absolute tau that overrides it.
    ratios
        Shares of train, validation and test.
    min_coverage_s
        Seconds without a gap that a row must have behind it.
    seed
        Of everything random.
    jobs
        Threads of XGBoost; 0 for as many as pay off.
    """

    service: str = DEFAULT_SERVICE
    exclude_products: tuple[str, ...] = ()
    sessions: tuple[str, ...] = ()
    experiment: str = field(default_factory=lambda: settings().experiment_name)
    percentile: float = field(default_factory=lambda: settings().threshold_percentile)
    tau: float | None = field(default_factory=lambda: settings().threshold_tau)
    ratios: tuple[float, float, float] = (0.7, 0.15, 0.15)
    min_coverage_s: float = field(default_factory=lambda: settings().min_coverage_s)
    seed: int = 7
    jobs: int = 0

    def __post_init__(self) -> None:
        if self.service not in SERVICES:
            raise UsageError(f"--service is {self.service!r}, must be one of {sorted(SERVICES)}")
        if not 0 < self.percentile < 100:
            raise UsageError(f"--threshold-percentile is {self.percentile:g}, must be in (0, 100), such as 95")
        if self.tau is not None and not 0 < self.tau < float("inf"):
            raise UsageError(f"--tau is {self.tau:g}, must be > 0: at 0 every horizon would be a spike")
        if not 0 <= self.min_coverage_s <= 900:
            raise UsageError(f"--min-coverage is {self.min_coverage_s:g} s, must be in [0, 900]")
        if self.seed < 0:
            raise UsageError(f"--seed is {self.seed}, must be a whole number >= 0")

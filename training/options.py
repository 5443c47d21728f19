"""What a training run may be told; the command line, the demo and the tests all fill this in."""

from __future__ import annotations

import re
from dataclasses import dataclass, field, replace
from typing import Final, Literal

from feature_repo.contract import DEFAULT_SERVICE, HORIZON_S, SERVICES, WINDOWS
from feature_repo.errors import UsageError
from infra.settings import settings
from training.objectives import parse
from training.rolling import RollingRule

KINDS: Final = ("zscore", "lr", "xgb")
"""Kinds of models, the baseline first."""
HORIZONS_S: Final = (2, 3600)
"""Allowed lengths of the label's horizon: one return has no deviation; over an hour nothing is left between gaps."""


@dataclass(frozen=True, slots=True)
class TrainOptions:
    """Options of label, split and train; defaults come from the settings.

    Attributes
    ----------
    service
        Feast feature service whose features the models read.
    exclude_products, sessions
        Products to leave out; sessions to use, empty for all. A session is named by its id or the beginning of one.
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
    models
        Kinds to train, of zscore, lr and xgb.
    hyper
        Hyperparameters by kind that replace the defaults of :mod:`training.models`, as tuning finds them.
    n_splits
        Purged folds inside the training block.
    objective
        What the threshold is for; see :mod:`training.objectives`.
    per_product
        Train a model for each product on its rows alone.
    device
        Of XGBoost: cpu, cuda or cuda:N.
    horizon_s, returns
        What the label is made of, see :func:`ingestion.kernel.label.sigma_fwd`.
    rolling_hours
        Hours of the trailing window whose percentile is tau; None for a tau that is fixed.
    each_session
        Split each session in time by the ratios, instead of the clock as a whole.
    train_sessions, val_sessions, test_sessions
        Whole sessions to a block, all three or none; they override the ratios.
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
    models: tuple[str, ...] = ("zscore", "lr", "xgb")
    hyper: dict[str, dict[str, float | int | str]] = field(default_factory=dict)
    n_splits: int = 5
    objective: str = "f1"
    per_product: bool = False
    device: str = "cpu"
    horizon_s: int = HORIZON_S
    returns: Literal["1s", "tick"] = "1s"
    rolling_hours: float | None = None
    each_session: bool = False
    train_sessions: tuple[str, ...] = ()
    val_sessions: tuple[str, ...] = ()
    test_sessions: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.service not in SERVICES:
            raise UsageError(f"--service is {self.service!r}, must be one of {sorted(SERVICES)}")
        if not 0 < self.percentile < 100:
            raise UsageError(f"--threshold-percentile is {self.percentile:g}, must be in (0, 100), such as 95")
        if self.tau is not None and not 0 < self.tau < float("inf"):
            raise UsageError(f"--tau is {self.tau:g}, must be > 0 and finite: at 0 every horizon would be a spike")
        if not 0 <= self.min_coverage_s <= 900:
            raise UsageError(f"--min-coverage is {self.min_coverage_s:g} s, must be in [0, 900]")
        if self.seed < 0:
            raise UsageError(f"--seed is {self.seed}, must be a whole number >= 0")
        if not self.models or set(self.models) - set(KINDS):
            raise UsageError(f"--models are {list(self.models)}, must be at least one of {list(KINDS)}")
        if self.n_splits < 1:
            raise UsageError(f"--n-splits is {self.n_splits}, must be a whole number >= 1, such as 5")
        if not re.fullmatch(r"cpu|cuda(:\d+)?", self.device):
            raise UsageError(f"--device is {self.device!r}, must be cpu, cuda or cuda:N")
        parse(self.objective)
        low, high = HORIZONS_S
        if not low <= self.horizon_s <= high:
            raise UsageError(f"--horizon is {self.horizon_s} s, must be in [{low}, {high}] s, such as 60s")
        if self.returns not in ("1s", "tick"):
            raise UsageError(f"--returns is {self.returns!r}, must be 1s or tick")
        if self.rolling is not None and self.tau is not None:
            raise UsageError(f"--tau {self.tau:g} is absolute and cannot roll; leave --tau or --threshold rolling out")
        self._check_sessions()

    def _check_sessions(self) -> None:
        blocks = (self.train_sessions, self.val_sessions, self.test_sessions)
        if not any(blocks):
            return
        if not all(blocks):
            raise UsageError("--train-sessions, --val-sessions and --test-sessions go together; give all three or none")
        named = [name for block in blocks for name in block]
        twice = sorted({name for name in named if named.count(name) > 1})
        if twice:
            raise UsageError(f"session {twice[0]} is named for two blocks; give each session to one block, once")
        if self.each_session or self.sessions:
            raise UsageError("--train-sessions names the sessions to use; leave --sessions and --session out")

    @property
    def purge_s(self) -> int:
        """Least distance on the clock between two blocks: a horizon and the longest window, seconds."""
        return self.horizon_s + max(WINDOWS)

    @property
    def rolling(self) -> RollingRule | None:
        """Rule of a tau that rolls; None where it is fixed."""
        if self.rolling_hours is None:
            return None
        return RollingRule(self.percentile, self.rolling_hours, self.horizon_s)

    def of_all_sessions(self) -> TrainOptions:
        """Return the same options for whatever session there is."""
        return replace(self, sessions=(), each_session=False, train_sessions=(), val_sessions=(), test_sessions=())

    @property
    def used_sessions(self) -> tuple[str, ...]:
        """All sessions that are named, empty for every one there is."""
        return self.sessions or (*self.train_sessions, *self.val_sessions, *self.test_sessions)

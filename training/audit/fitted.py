"""What was fitted: medians, scales, calibrator and decision threshold, each made again on the block it may know."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Final

import msgspec
import numpy as np
from numpy.typing import NDArray

from training.artefact import Artefact, Calibration, Linear, signed_log
from training.audit.evidence import Evidence
from training.audit.findings import Finding

REL: Final = 1e-5
"""Difference, as a share of the scale, up to which two fits of one statistic are the same."""
SAME_P: Final = 1e-4
"""Difference of two probabilities up to which they come from one calibrator: what the optimiser leaves open."""
_OTHERS: Final = (
    ("train", "validation"),
    ("train", "validation", "test"),
    ("train", "test"),
    ("validation",),
    ("test",),
)

Stats = dict[str, NDArray[np.float64]]


def scaler(e: Evidence) -> Iterator[Finding]:
    """Make medians, units, means and scales of a linear model again, from the training block."""
    art = e.artefact
    if art is None or art.manifest.kind == "xgb":
        return
    linear = weights(art)
    x = columns(e, art)
    used = np.array([w != 0 or m != 0 for w, m in zip(linear.weight, linear.missing_weight, strict=True)])
    found = _found(linear)
    wanted = _statistics(x[e.mask("train")], found, zscore=art.manifest.kind == "zscore")
    for code, names in (("IMPUTER_OUTSIDE_TRAIN", ("fill",)), ("SCALER_OUTSIDE_TRAIN", ("log", "mean", "scale"))):
        wrong = _differ(found, wanted, names) & used
        if not wrong.any():
            continue
        column = int(np.flatnonzero(wrong)[0])
        values = ", ".join(f"{n} {found[n][column]:.6g} instead of {wanted[n][column]:.6g}" for n in names)

        def fits(mask: NDArray[np.bool_], names: tuple[str, ...] = names, wrong: NDArray[np.bool_] = wrong) -> bool:
            again = _statistics(x[mask], found, zscore=e.artefact is not None and e.artefact.manifest.kind == "zscore")
            return not (_differ(found, again, names) & wrong).any()

        yield Finding(
            code,
            "leak",
            f"{wrong.sum()} of {used.sum()} features were not fitted on train: {art.manifest.features[column]} has "
            f"{values}{_elsewhere(e, fits)}",
        )
    if not (_differ(found, wanted, ("fill",)) & used).any():
        yield from _imputation(e, art, x)


def _imputation(e: Evidence, art: Artefact, x: NDArray[np.float64]) -> Iterator[Finding]:
    said = art.manifest.imputation.values
    train = x[e.mask("train")]
    wrong = []
    for column, name in enumerate(art.manifest.features):
        v = train[:, column]
        if name in said and not np.isnan(v).all():
            median = float(np.median(v[~np.isnan(v)]))
            if abs(said[name] - median) > REL * abs(median):
                wrong.append(f"{name} {said[name]:.6g} instead of {median:.6g}")
    if wrong:
        text = f"{len(wrong)} values that stand for missing ones are not the medians of train: {'; '.join(wrong[:3])}"
        yield Finding("IMPUTER_OUTSIDE_TRAIN", "leak", text)


def calibrator(e: Evidence) -> Iterator[Finding]:
    """Fit the calibrator again on the validation block."""
    art = e.artefact
    if art is None or art.manifest.calibration.method == "none" or not _both(e, "validation"):
        return
    x, used = columns(e, art), art.manifest.calibration
    held = e.mask("validation")
    margin = art.margin(x[held])

    def again(mask: NDArray[np.bool_]) -> Calibration:
        return _refit(used.method, margin if mask is held else art.margin(x[mask]), e.spike[mask])

    def fits(mask: NDArray[np.bool_]) -> bool:
        return float(np.abs(_p(used, margin) - _p(again(mask), margin)).max()) <= SAME_P

    if fits(held):
        return
    p, wanted = _p(used, margin), _p(again(held), margin)
    where = _elsewhere(e, fits)
    yield Finding(
        "CALIBRATOR_OUTSIDE_VALIDATION",
        "leak",
        f"the {used.method} calibrator is not the one that validation gives: on the validation rows its mean "
        f"probability is {p.mean():.4f} instead of {wanted.mean():.4f} (greatest difference "
        f"{np.abs(p - wanted).max():.4f}){where}",
    )


def threshold(e: Evidence) -> Iterator[Finding]:
    """Choose the decision threshold again on the validation block."""
    art = e.artefact
    if art is None or not _both(e, "validation"):
        return
    from training.objectives import parse

    objective = parse(e.objective)
    x = columns(e, art)
    products = e.rows["product_id"].to_numpy().astype(np.str_)

    def cut(mask: NDArray[np.bool_]) -> float:
        return objective.threshold(art.predict_proba(x[mask]), e.spike[mask], e.t_ns[mask], products[mask])

    held = e.mask("validation")
    wanted, used = cut(held), art.manifest.threshold
    if abs(wanted - used) <= 1e-9:
        return
    p = art.predict_proba(x[held])
    if not ((p >= wanted) != (p >= used)).any():
        return  # the same alarms: only rounding lies between
    yield Finding(
        "THRESHOLD_OUTSIDE_VALIDATION",
        "leak",
        f"the decision threshold is {used:.6g}, for {e.objective} validation gives {wanted:.6g}"
        f"{_elsewhere(e, lambda m: abs(cut(m) - used) <= 1e-9)}",
    )


def weights(art: Artefact) -> Linear:
    """Read the linear model that an artefact holds."""
    return msgspec.json.decode(art.model, type=Linear)


def columns(e: Evidence, art: Artefact) -> NDArray[np.float64]:
    """Features of all rows in the order of the artefact, float64[n, f]."""
    at = {name: i for i, name in enumerate(e.features)}
    if list(e.features) == art.manifest.features:
        return e.x
    return e.x[:, [at[name] for name in art.manifest.features]]


def _found(linear: Linear) -> Stats:
    log = linear.log or [0.0] * len(linear.fill)
    return {"fill": np.array(linear.fill), "log": np.array(log), "mean": np.array(linear.mean),
            "scale": np.array(linear.scale)}  # fmt: skip


def _statistics(x: NDArray[np.float64], found: Stats, *, zscore: bool) -> Stats:
    """Take the statistics of each column again, on top of the fill and the unit that were found."""
    out = {name: np.full(x.shape[1], np.nan) for name in found}
    for j in range(x.shape[1]):
        column = x[:, j]
        missing = np.isnan(column)
        known = column[~missing]
        if not len(known):
            continue
        out["fill"][j] = np.median(known)
        size = np.abs(known[known != 0])
        unit = found["log"][j]
        out["log"][j] = 0.1 * np.median(size) if unit > 0 and len(size) else 0.0
        seen = known if zscore else np.where(missing, found["fill"][j], column)
        seen = signed_log(seen, unit) if unit > 0 else seen
        out["mean"][j], out["scale"][j] = seen.mean(), seen.std()
    return out


def _differ(found: Stats, wanted: Stats, names: tuple[str, ...]) -> NDArray[np.bool_]:
    """Tell in which columns a statistic differs by more than rounding, bool[f]; fill and unit against themselves."""
    wrong = np.zeros(len(found["fill"]), np.bool_)
    for n in names:
        unit = wanted["scale"] if n in ("mean", "scale") else np.abs(wanted[n])
        wrong |= np.abs(found[n] - wanted[n]) > REL * np.maximum(unit, 1e-12 * np.abs(wanted["mean"]))
    return wrong


def _refit(method: str, margin: NDArray[np.float64], y: NDArray[np.bool_]) -> Calibration:
    from training import calibration

    if method == "isotonic":
        return calibration.isotonic(margin, y)
    return calibration.sigmoid(margin, y)


def _p(c: Calibration, margin: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.asarray(1 / (1 + np.exp(-np.clip(c.apply(margin), -700, 700))))


def _both(e: Evidence, block: str) -> bool:
    spikes = int(e.spike[e.mask(block)].sum())
    return 0 < spikes < int(e.mask(block).sum())


def _elsewhere(e: Evidence, fits: Callable[[NDArray[np.bool_]], bool]) -> str:
    """Name the blocks on which the fit would come out as it was found."""
    for blocks in _OTHERS:
        mask = np.any([e.mask(b) for b in blocks], axis=0)
        if all(_both(e, b) for b in blocks) and fits(mask):
            return f"; fitted on {' and '.join(blocks)} it comes out exactly so"
    return ""

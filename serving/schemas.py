"""What goes in and out over HTTP, as msgspec structs, and the one place where bodies are decoded."""

from __future__ import annotations

import json
import math
from collections import Counter
from typing import Annotated, Final, Literal, TypeVar

import msgspec

from feature_repo.contract import BY_NAME
from serving.problems import Problem

BODY_LIMIT_BYTES: Final = 1_000_000
"""Largest request body; a batch of :data:`BATCH_LIMIT` products is 70 kB."""
BATCH_LIMIT: Final = 1_000
"""Most products in one batch: what one read of the store and one model call answer within 100 ms or so."""

ProductId = Annotated[str, msgspec.Meta(min_length=1, max_length=64, pattern=r"^[A-Za-z0-9._/:-]+\Z")]

Status = Literal["ok", "stale", "missing", "unsynced", "insufficient_coverage", "no_threshold"]
"""Why there is, or isn't, a probability; see :mod:`serving.scorer`."""
ItemStatus = Literal[
    "ok", "stale", "missing", "unsynced", "insufficient_coverage", "no_threshold", "unknown_product"
]


class PredictRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Body of ``POST /predict``."""

    product_id: ProductId


class BatchRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Body of ``POST /predict_batch``."""

    product_ids: Annotated[list[ProductId], msgspec.Meta(min_length=1, max_length=BATCH_LIMIT)]


class FeaturesRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Body of ``POST /predict_features``: features by name, null or left out where missing."""

    product_id: ProductId
    features: dict[str, object]


class Model(msgspec.Struct, frozen=True):
    """Which model answered."""

    name: str
    version: str
    alias: str = "champion"


class Prediction(msgspec.Struct, frozen=True):
    """One answer. ``spike_probability`` and ``spike`` are null unless ``status`` is ok.

    ``tau`` is per one-second log return, ``horizon_s`` starts at ``event_time``, ``feature_age_ms`` is now − event time
    on the configured clock.
    """

    prediction_id: str
    product_id: str
    spike_probability: float | None
    spike: bool | None
    threshold: float
    tau: float | None
    horizon_s: int
    event_time: str | None
    feature_age_ms: float | None
    book_state: int | None
    model: Model
    status: ItemStatus


class FeaturesPrediction(Prediction, frozen=True):
    """Answer of ``/predict_features``: with what the model reads but was missing, and what was given but isn't read."""

    missing: list[str]
    ignored: list[str]


class Batch(msgspec.Struct, frozen=True):
    """Answer of ``/predict_batch``, in the order of the request."""

    predictions: list[Prediction]


class Features(msgspec.Struct, frozen=True):
    """Answer of ``GET /features/{product_id}``: every feature of the contract, null where missing."""

    product_id: str
    event_time: str
    feature_age_ms: float
    status: Status
    features: dict[str, float | int | None]


_Body = TypeVar("_Body", bound=msgspec.Struct)


def decode(body: bytes, kind: type[_Body]) -> _Body:
    """Decode a body.

    Raises
    ------
    Problem
        400 if it is not JSON, 422 if it is but not of this form or names a key twice; the detail names the field.
    """
    try:
        decoded = msgspec.json.decode(body, type=kind)
        _DISTINCT.decode(body.decode())
        return decoded
    except msgspec.ValidationError as error:
        _refuse_non_finite(body, error)
        raise Problem(422, f"{error}; expected an object with {', '.join(_fields(kind))}") from error
    except RecursionError as error:
        raise Problem(400, "the body is nested too deep") from error
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        _refuse_non_finite(body, error)
        raise Problem(400, f"the body is not JSON: {error}") from error


def numbers(features: dict[str, object]) -> dict[str, float | None]:
    """Check the features of a request: known names, and finite numbers or null.

    Raises
    ------
    Problem
        422, naming every feature that is unknown or whose value can't be used.
    """
    unknown = sorted(name for name in features if name not in BY_NAME)
    if unknown:
        raise Problem(
            422,
            f"unknown features: {_some(unknown)}; GET /features/{{product_id}} lists the names",
            {"unknown_features": unknown[:100]},
        )
    bad = sorted(name for name, value in features.items() if value is not None and not _is_number(value))
    if bad:
        raise _not_numbers(bad)
    if all(value is None for value in features.values()):
        raise Problem(422, "features holds no value; give at least one number")
    return {n: float(v) if isinstance(v, int | float) else None for n, v in features.items()}


def _refuse_repeats(pairs: list[tuple[str, object]]) -> None:
    if len(dict(pairs)) < len(pairs):
        repeated = sorted(key for key, times in Counter(key for key, _ in pairs).items() if times > 1)
        raise Problem(
            422, f"named more than once: {_some(repeated)}; give each key once", {"repeated_keys": repeated[:100]}
        )


# Parsers take the last of two values silently (RFC 8259 section 4 leaves it open), and a caller meant one of them.
# Numbers stay text: Python refuses to make one of thousands of digits.
_DISTINCT: Final = json.JSONDecoder(object_pairs_hook=_refuse_repeats, parse_int=str, parse_float=str)


def _is_number(value: object) -> bool:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    try:
        return math.isfinite(value)
    except OverflowError:  # an integer of hundreds of digits
        return False


def _not_numbers(names: list[str]) -> Problem:
    return Problem(
        422, f"not a finite number or null: {_some(names)}; missing values are null", {"invalid_features": names[:100]}
    )


def _refuse_non_finite(body: bytes, cause: Exception) -> None:
    """Name the features given as NaN, Infinity or 1e400: no JSON, but what Python's own json writes and reads."""
    try:
        features = json.loads(body)["features"]
        bad = sorted(n for n, v in features.items() if isinstance(v, float) and not math.isfinite(v))
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return
    if bad:
        raise _not_numbers(bad) from cause


def _some(names: list[str]) -> str:
    shown = ", ".join(name[:80] for name in names[:5])
    return shown if len(names) <= 5 else f"{shown} and {len(names) - 5} more"


def _fields(kind: type[msgspec.Struct]) -> tuple[str, ...]:
    return kind.__struct_encode_fields__

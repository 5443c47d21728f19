"""What the serving tests share: a small verified artefact, and rows in a Redis as Feast's own store writes them."""

from __future__ import annotations

import hashlib
import json
import math
import struct
from collections.abc import Mapping
from pathlib import Path

import msgspec
import numpy as np

from feature_repo.contract import BY_NAME, FEATURE_NAMES, SERVICES, feature_hash, service_hash
from feature_repo.online_format import entity_key, field_key
from training import artefact as art

SERVICE = "spike_core_v1"
FEATURES = SERVICES[SERVICE]
TAU = {"BTC-USD": 1e-4, "ETH-USD": 2e-4}
Values = Mapping[str, float | int | None]


def write_artefact(
    folder: Path, *, seed: int = 0, tau: Mapping[str, float] = TAU, service: str = SERVICE
) -> art.Artefact:
    """Save a logistic regression with random weights over a service's features."""
    names = list(SERVICES[service])
    rng = np.random.default_rng(seed)
    n = len(names)
    linear = art.Linear(
        fill=[0.5] * n,
        mean=rng.normal(size=n).tolist(),
        scale=rng.uniform(0.5, 2, size=n).tolist(),
        weight=(rng.normal(size=n) / math.sqrt(n)).tolist(),
        missing_weight=rng.normal(size=n).tolist(),
        intercept=-0.3,
    )
    manifest = art.Manifest(
        name="lr",
        kind="lr",
        service=art.Service(service, service_hash(service)),
        features=names,
        feature_hash=feature_hash(names),
        label=art.Label(art.Rule("percentile", 95.0), dict(tau)),
        threshold=0.5,
        calibration=art.Calibration(),
        imputation=art.Imputation("median", {name: 0.5 for name in names}),
        training=art.Training({}, list(tau), [], 900.0, 960),
        data={},
        metrics={"test": {"pr_auc": 0.2}},
        seeds={"model": seed},
        versions={},
    )
    art.save(folder, manifest, msgspec.json.encode(linear))
    return art.load(folder)


def age(folder: Path) -> str:
    """Turn an artefact into one of older code, whole and sealed but for the hash of its service; returns its digest."""
    manifest = json.loads((folder / art.MANIFEST).read_text())
    manifest["service"]["hash"] = "0" * len(manifest["service"]["hash"])
    text = json.dumps(manifest).encode()
    digest = hashlib.sha256(text).hexdigest()
    (folder / art.MANIFEST).write_bytes(text)
    (folder / art.SEAL).write_text(digest + "\n")
    return digest


def promote(data: Path, artefact: art.Artefact | str, run: str, version: str = "1") -> None:
    """Write the pointer as ``volspike promote`` does, to an artefact or its digest."""
    digest = artefact if isinstance(artefact, str) else artefact.digest
    said = {"name": "volspike", "version": version, "run_id": run, "path": run, "sha256": digest}
    target = data / "models" / "champion.json"
    temporary = target.with_suffix(".tmp")
    temporary.write_text(json.dumps(said))
    temporary.replace(target)


def some_values(seed: int = 0) -> dict[str, float | int | None]:
    """Return a row's features: floats with all their digits, integers, and nulls here and there."""
    rng = np.random.default_rng(seed)
    values: dict[str, float | int | None] = {}
    for i, name in enumerate(FEATURE_NAMES):
        number = int(rng.integers(-5, 2**40)) if BY_NAME[name].dtype == "int64" else float(rng.normal() * 10 ** (i % 9))
        values[name] = None if i % 11 == 5 else number
    return {**values, "book_state": 1, "coverage_s": 900.0, FEATURES[1]: 0.0, FEATURES[2]: None}


def expected_probability(artefact: art.Artefact, values: Values) -> float:
    """Score a row offline."""
    x = np.array([[np.nan if values[n] is None else values[n] for n in artefact.manifest.features]], np.float64)
    return float(artefact.predict_proba(x)[0])


def write_row(connection: str, project: str, product: str, time_ns: int, values: Values) -> None:
    """Put a row into Redis in the bytes of Feast's store; ``test_online_reader`` holds them against Feast itself."""
    import redis

    fields: dict[bytes, bytes] = {b"_ts:spike_features": _timestamp(time_ns)}
    for name, value in values.items():
        fields[field_key(name)] = b"" if value is None else _value(name, value)
    with redis.Redis.from_url(f"redis://{connection}") as client:
        client.hset(entity_key(product, project), mapping=fields)  # type: ignore[arg-type]


def _value(name: str, value: float) -> bytes:
    if BY_NAME[name].dtype == "int64":
        return b"\x20" + _varint(int(value) % 2**64)
    return b"\x29" + struct.pack("<d", value)


def _timestamp(time_ns: int) -> bytes:
    seconds, nanos = divmod(time_ns, 10**9)
    return b"\x08" + _varint(seconds) + (b"\x10" + _varint(nanos) if nanos else b"")


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])

"""What ``feast apply`` registers: entity, table, push source, view and services, all generated from the contract."""

from __future__ import annotations

from datetime import timedelta

from feast import Entity, FeatureService, FeatureView, Field, Project, PushSource, ValueType
from feast.types import Float64, Int64, String

from feature_repo import contract
from feature_repo.source import DeltaTableSource

_TYPES = {"float64": Float64, "int64": Int64}

project = Project(name="volspike", description="How likely is a volatility spike in the next 60 seconds?")

product = Entity(
    name=contract.ENTITY,
    join_keys=[contract.ENTITY],
    value_type=ValueType.STRING,
    description="A market, such as BTC-USD.",
)

spike_table = DeltaTableSource(
    name=contract.VIEW,
    table=contract.VIEW,
    timestamp_field="row_time",
    created_timestamp_column="created_timestamp",
    description="Delta table of feature rows, one per ticker and per whole second.",
)

spike_push = PushSource(
    name=contract.PUSH_SOURCE,
    batch_source=spike_table,
    description="Rows from a stream: store.push writes them to Redis, to the Delta table, or to both.",
)

# Beyond its longest window nothing that a row was computed from is still inside any window.
_TTL = timedelta(seconds=max(contract.WINDOWS))

spike_features = FeatureView(
    name=contract.VIEW,
    entities=[product],
    ttl=_TTL,
    schema=[
        Field(name=contract.ENTITY, dtype=String),
        *(
            Field(
                name=feature.name,
                dtype=_TYPES[feature.dtype],
                description=feature.formula,
                tags={"unit": feature.unit, "version": str(feature.version)},
            )
            for feature in contract.FEATURES
        ),
    ],
    source=spike_push,
    online=True,
    description="All features of the contract.",
)

services = [
    FeatureService(
        name=name,
        features=[spike_features[list(features)]],
        description=f"{len(features)} features.",
        tags={"hash": contract.service_hash(name)},
    )
    for name, features in contract.SERVICES.items()
]
# Feast's parser looks for objects, not for lists of them.
spike_full_v1, spike_top30_v1, spike_core_v1, spike_model_v1 = services

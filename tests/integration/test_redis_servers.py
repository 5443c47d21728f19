"""The online table on each Redis that we promise: the wheel's, and the one that the system has installed."""

from __future__ import annotations

from pathlib import Path

import pytest

from feature_repo.contract import FEATURE_NAMES
from infra import services
from infra.embedded import ensure_redis
from infra.settings import settings
from ingestion import online
from tests.feature_rows import feature_rows


@pytest.mark.parametrize("server", ["redis_server", "redis_debian"])
def test_a_row_comes_back_equal_and_an_older_one_never_replaces_it(
    server: str, request: pytest.FixtureRequest, data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VOLSPIKE_REDIS_URL", request.getfixturevalue(server))
    settings.cache_clear()
    with ensure_redis() as address:
        assert address == request.getfixturevalue(server)
        assert services.running(data_dir / "run") == [], "a second server was started"
        table = online.OnlineTable()
        rows = feature_rows("TEST-SERVERS", [5_000_000, 1_000_000])
        for i in (0, 1):
            table.write(rows.slice(i, 1))
        found = table.read(["TEST-SERVERS"])["TEST-SERVERS"]
    assert found is not None
    assert found.values == {name: rows.column(name).to_pylist()[0] for name in FEATURE_NAMES}

"""Files of ours that somebody damaged: a line that says which and what to do, from every command that reads them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from feature_repo.contract import VIEW
from feature_repo.errors import StoreError
from infra import services
from infra.settings import settings
from ingestion import online, tables
from ingestion.kernel import Featurizer
from monitoring import drift_inputs
from tests.feature_rows import feature_rows

KEY = ("00f1a2b3c4d5e6f7", "BTC-USD")
TICKER = (
    b'{"type":"ticker","product_id":"BTC-USD","price":"100","best_bid":"99","best_ask":"101","best_bid_size":"1",'
    b'"best_ask_size":"1","side":"buy","time":"2025-11-12T00:00:0%d.000000Z","trade_id":%d,"last_size":"1"}'
)


@pytest.fixture
def table(data_dir: Path) -> Path:
    tables.append(VIEW, feature_rows("BTC-USD", range(300)), np.arange(1, 301), {KEY: 300})
    return settings().tables / VIEW


def cut(folder: Path) -> None:
    (part,) = folder.glob("part-*")
    part.write_bytes(part.read_bytes()[:1000])


def lose(folder: Path) -> None:
    (part,) = folder.glob("part-*")
    part.unlink()


def scribble(folder: Path) -> None:
    (folder / "_delta_log" / f"{1:020d}.json").write_text("garbage\n")


@pytest.mark.parametrize("damage", [cut, lose, scribble])
@pytest.mark.parametrize("reads", [online.newest_offline, lambda: drift_inputs.rows([])])
def test_a_damaged_table_is_one_line(table: Path, damage: Callable[[Path], None], reads: Callable[[], object]) -> None:
    damage(table)
    with pytest.raises(StoreError, match=VIEW) as caught:
        reads()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["{", "", "[1]", '[{"name": "redis"}]', "{}"])
def test_a_damaged_list_of_what_runs_is_an_empty_one(data_dir: Path, text: str) -> None:
    folder = settings().run
    folder.mkdir(parents=True)
    (folder / services.FILE).write_text(text)
    assert services.running(folder) == []
    entry = services.Service("redis", 1, "127.0.0.1", 1, "2025-11-12T00:00:00+00:00")
    services.announce(folder, entry)
    assert services.running(folder) == [entry]


def test_a_damaged_registry_is_named_with_what_to_do(data_dir: Path) -> None:
    from feature_repo.store import apply

    apply()
    (settings().data / "registry.db").write_bytes(b"\xff" * 300)
    with pytest.raises(StoreError, match=r"registry.db is no registry .* delete it"):
        apply()


def test_infinity_is_pushed_nowhere(data_dir: Path) -> None:
    from feature_repo.backends import RedisFromSettingsOnlineStore
    from feature_repo.definitions import spike_features
    from feature_repo.errors import ContractError
    from feature_repo.store import config

    table = online.OnlineTable()
    key, value = table._key("BTC-USD"), table._value(double_val=float("inf"))
    with pytest.raises(ContractError, match="mid holds infinity"):
        RedisFromSettingsOnlineStore().online_write_batch(
            config(), spike_features, [(key, {"mid": value}, None, None)], None
        )


def test_a_number_that_has_no_next_one_is_set_aside() -> None:
    kernel = Featurizer()
    huge = b'{"ts":1762905600.5,"session":"a","n":9223372036854775807,"raw":"{}"}'
    kernel.push_lines(b"\n".join((TICKER % (1, 1), huge, TICKER % (2, 2))) + b"\n")
    assert (kernel.counts["ticker"], kernel.counts["malformed"]) == (2, 1)

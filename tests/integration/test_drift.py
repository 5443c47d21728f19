"""Drift reports: what drifts, what can't be compared, and what the command does with files, halves and nonsense."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from feature_repo.contract import BY_NAME, DEFAULT_SERVICE, SERVICES
from feature_repo.errors import InputError, InsufficientDataError, UsageError
from infra.cli import main
from monitoring import drift, drift_inputs

FEATURES = SERVICES[DEFAULT_SERVICE]
SHIFTED, EMPTY, CONSTANT, APPEARED, VANISHED = FEATURES[3:8]
KEPT = FEATURES[:8]
SECOND = 1_000_000_000


def rows(n: int, seed: int, *, product: str = "BTC-USD", start_s: int = 0, shift: float = 0.0) -> pl.DataFrame:
    rng = np.random.default_rng(seed)
    columns: dict[str, object] = {
        "product_id": [product] * n,
        "trigger": ["grid"] * n,
        "event_time_ns": (np.arange(n) + start_s) * SECOND,
        **{name: rng.normal(size=n) for name in FEATURES},
    }
    frame = pl.DataFrame(columns)
    return frame.with_columns(
        pl.lit(900.0).alias("coverage_s"),
        pl.col(SHIFTED) + shift,
        pl.lit(None, pl.Float64).alias(EMPTY),
        pl.lit(1.0).alias(CONSTANT),
        *(pl.lit(0).alias(f) for f in FEATURES[8:] if BY_NAME[f].dtype == "int64"),
    )


def naive_psi(reference: np.ndarray, current: np.ndarray) -> float:
    """PSI by its definition over 30 equal bins of the reference's and current's range; empty bins count 1e-4."""
    edges = np.histogram_bin_edges(np.concatenate([reference, current]), bins="sturges")
    shares = [np.histogram(side, edges)[0] / len(side) for side in (reference, current)]
    p, q = (np.where(share == 0, 1e-4, share) for share in shares)
    return float(np.sum((p - q) * np.log(p / q)))


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> drift.DriftReport:
    """One report by product: BTC moved, ETH did not, SOL has too little."""
    before = rows(600, 1).with_columns(pl.lit(None, pl.Float64).alias(APPEARED))
    after = rows(500, 2, shift=2.0).with_columns(pl.lit(None, pl.Float64).alias(VANISHED))
    quiet = rows(600, 3, product="ETH-USD")
    tiny = rows(5, 4, product="SOL-USD")
    return drift.report(
        pl.concat([before, quiet, tiny]),
        pl.concat([after, quiet, tiny]),
        by="product_id",
        features=KEPT,
        out=tmp_path_factory.mktemp("drift"),
        name="by-product",
    )


def test_shifted_column_drifts_and_leads(found: drift.DriftReport) -> None:
    btc = next(g for g in found.groups if g.key == "BTC-USD")
    scored = [c for c in btc.drifted if c.kind == "scored"]
    assert [c.name for c in scored] == [SHIFTED]
    assert btc.rows == (600, 500)


def test_psi_is_near_its_definition(found: drift.DriftReport) -> None:
    btc = next(g for g in found.groups if g.key == "BTC-USD")
    column = next(c for c in btc.columns if c.name == SHIFTED)
    expected = naive_psi(rows(600, 1)[SHIFTED].to_numpy(), rows(500, 2, shift=2.0)[SHIFTED].to_numpy())
    # Bins at the edge hold a row or two, and how an empty one is counted is Evidently's own.
    assert column.psi == pytest.approx(expected, rel=0.25)


def test_same_rows_do_not_drift(found: drift.DriftReport) -> None:
    eth = next(g for g in found.groups if g.key == "ETH-USD")
    assert eth.drifted == [] and eth.share == 0
    assert all(c.psi == pytest.approx(0, abs=1e-12) for c in eth.columns if c.kind == "scored")


def test_columns_without_values_are_named(found: drift.DriftReport) -> None:
    kinds = {c.name: c.kind for c in next(g for g in found.groups if g.key == "BTC-USD").columns}
    assert {n: kinds[n] for n in (EMPTY, CONSTANT, APPEARED, VANISHED)} == {
        EMPTY: "empty", CONSTANT: "constant", APPEARED: "appeared", VANISHED: "vanished",
    }  # fmt: skip


def test_group_with_too_little_is_skipped_with_its_reason(found: drift.DriftReport) -> None:
    assert set(found.skipped) == {"SOL-USD"} and "5 reference" in found.skipped["SOL-USD"]


def test_html_stands_alone_and_json_says_the_same(found: drift.DriftReport) -> None:
    said = json.loads(Path(found.json).read_text())
    assert [g["key"] for g in said["groups"]] == ["BTC-USD", "ETH-USD"]
    for group in found.groups:
        page = Path(group.html).read_text()
        assert f"Drift of {group.key}: {len(group.drifted)} of {len(group.compared)} columns" in page
        assert "<script src=" not in page and 'rel="stylesheet" href="http' not in page


def test_too_little_everywhere_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InsufficientDataError, match="at least 100"):
        drift.report(rows(99, 1), rows(200, 2), out=tmp_path, name="x")


def test_infinity_is_refused(tmp_path: Path) -> None:
    bad = rows(200, 2).with_columns(pl.lit(float("inf")).alias(FEATURES[0]))
    with pytest.raises(InputError, match=FEATURES[0]):
        drift.report(rows(200, 1), bad, out=tmp_path, name="x", features=FEATURES[:1])


def test_halves_meet_in_the_middle_of_the_time() -> None:
    frame = pl.concat([rows(100, 1), rows(300, 2, start_s=900)])
    early, late = drift_inputs.halves(frame)
    assert len(early) == 100 and len(late) == 300
    assert early["event_time_ns"].max() < late["event_time_ns"].min()  # type: ignore[operator]


def test_rows_are_read_from_a_folder_and_filtered(tmp_path: Path, data_dir: Path) -> None:
    one = rows(120, 1).with_columns(pl.Series("coverage_s", [10.0] * 20 + [900.0] * 100))
    two = rows(50, 2).with_columns(pl.lit("ticker").alias("trigger"))
    one.write_parquet(tmp_path / "a.parquet")
    two.write_parquet(tmp_path / "b.parquet")
    assert len(drift_inputs.rows([str(tmp_path)])) == 100
    assert len(drift_inputs.rows([str(tmp_path)], trigger="all", min_coverage_s=0)) == 170


@pytest.mark.parametrize(
    ("source", "error"),
    [
        ("missing.parquet", InputError),
        ("broken.parquet", InputError),
        ("narrow.parquet", InputError),
        ("2026-01-01..", UsageError),
        ("yesterday..", UsageError),
        ("2026-01-01T00:00:00Z..2026-01-02T00:00:00Z", InsufficientDataError),
    ],
)
def test_bad_source_is_refused(source: str, error: type[Exception], tmp_path: Path, data_dir: Path) -> None:
    (tmp_path / "broken.parquet").write_bytes(b"PAR1 and then nothing")
    pl.DataFrame({"product_id": ["BTC-USD"]}).write_parquet(tmp_path / "narrow.parquet")
    with pytest.raises(error):
        drift_inputs.rows([str(tmp_path / source) if source.endswith("parquet") else source])


@pytest.mark.parametrize(
    "arguments",
    [[], ["--early-late", "--train-test", "champion"], ["--reference", "a.parquet"], ["--early-late", "--by", "hour"]],
)
def test_calls_that_make_no_sense_exit_2(arguments: list[str], data_dir: Path) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["drift", *arguments])
    assert ended.value.code == 2


def test_empty_table_exits_1_and_says_so(data_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["drift", "--early-late"])
    assert ended.value.code == 1
    assert "none has trigger grid" in capsys.readouterr().err


def test_command_prints_the_result_as_json(
    tmp_path: Path, data_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows(200, 1).write_parquet(tmp_path / "before.parquet")
    rows(200, 1).write_parquet(tmp_path / "after.parquet")
    paths = ["--reference", str(tmp_path / "before.parquet"), "--current", str(tmp_path / "after.parquet")]
    with pytest.raises(SystemExit) as ended:
        main(["drift", *paths, "--out", str(tmp_path / "out"), "--json"])
    assert ended.value.code == 0
    (group,) = json.loads(capsys.readouterr().out)["groups"]
    assert group["share"] == 0 and Path(group["html"]).parent == tmp_path / "out"

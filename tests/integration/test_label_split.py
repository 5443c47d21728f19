"""Label and split through their commands: against a table labelled by hand, and whatever the tables hold."""

from __future__ import annotations

import bisect
import json
import math
import statistics
from itertools import combinations, pairwise

import numpy as np
import polars as pl
import pytest

from feature_repo.contract import PURGE_S
from infra import cli
from infra.settings import settings
from ingestion import tables
from tests import training_tables
from training.labels import labels_of
from training.options import TrainOptions
from training.rolling_state import resume
from training.spikes import spikes
from training.splits import BLOCKS

S = training_tables.S
ONE, TWO, THREE = "aa00000000000001", "bb00000000000002", "cc00000000000003"


def volspike(capsys, *args):
    """Run a command; returns exit code, output and errors."""
    with pytest.raises(SystemExit) as stop:
        cli.main(list(args))
    out, err = capsys.readouterr()
    return stop.value.code, out, err


def said(capsys, *args):
    code, out, err = volspike(capsys, *args, "--json")
    assert code == 0, err
    return json.loads(out)


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """Three sessions of two products, the second an hour after the first, the third three minutes after the second."""
    root = tmp_path_factory.mktemp("labels")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VOLSPIKE_DATA", str(root / "data"))
        settings.cache_clear()
        start = training_tables.START
        for i, (session, begins, hours) in enumerate([(ONE, 0, 3), (TWO, 4, 2), (THREE, 6.05, 2)]):
            training_tables.write(seconds=hours * 3600, session=session, start=start + int(begins * 3600) * S, seed=i)
        yield root
    settings.cache_clear()


@pytest.fixture
def in_home(home, monkeypatch):
    monkeypatch.setenv("VOLSPIKE_DATA", str(home / "data"))
    settings.cache_clear()


def by_hand(times, mids, t, horizon, returns):
    """Sigma of one row from the quotes of its session; None where the log does not reach."""
    if t + horizon * S > times[-1]:
        return None
    if returns == "1s":
        seen = [mids[bisect.bisect_right(times, t + k * S) - 1] for k in range(horizon + 1)]
    else:
        seen = mids[bisect.bisect_right(times, t) - 1 : bisect.bisect_right(times, t + horizon * S)]
    return statistics.pstdev([math.log(b / a) for a, b in pairwise(seen)])


@pytest.mark.parametrize(("horizon", "returns"), [(60, "1s"), (30, "1s"), (90, "tick")])
def test_labels_are_those_made_by_hand(in_home, horizon, returns):
    rows = tables.scan("quotes").filter((pl.col("product_id") == "ETH-USD") & (pl.col("session") == TWO)).collect()
    times = rows["event_time_ns"].to_list()
    mids = ((rows["bid"] + rows["ask"]) / 2).to_list()
    got = labels_of(TrainOptions(sessions=("bb",), horizon_s=horizon, returns=returns))
    got = got.filter(pl.col("product_id") == "ETH-USD").select("event_time_ns", "sigma_fwd", "null_reason")
    assert got["event_time_ns"].to_list() == times
    for t, sigma, reason in [*got.rows()[::53], *got.rows()[-horizon - 2 :]]:
        expected = by_hand(times, mids, t, horizon, returns)
        assert sigma == (None if expected is None else pytest.approx(expected, rel=1e-9))
        assert reason == ("watermark" if expected is None else None)


def test_each_row_has_the_tau_of_horizons_that_had_ended(in_home):
    """The rolling rule over the labels: an hour back, nothing from within the row's own minute."""
    options = TrainOptions(rolling_hours=1.0, percentile=90.0, exclude_products=("BTC-USD",))
    frame = labels_of(options)
    found = spikes(frame, options)
    assert found.frame["tau"].null_count() == 0
    usable = frame.filter(pl.col("sigma_fwd").is_not_null() & (pl.col("coverage_s") >= 900))
    begun, sigma = usable["event_time_ns"].to_numpy(), usable["sigma_fwd"].to_numpy()
    for t, tau, spike, own in found.frame.select("event_time_ns", "tau", "spike", "sigma_fwd").rows()[::53]:
        window = sigma[(begun + 60 * S <= t) & (begun + 60 * S > t - 3600 * S)]
        assert tau == np.percentile(window, 90)
        assert spike == (own >= tau)
    last = found.frame.filter(pl.col("block") != "test").tail(1)
    assert found.tau == {"ETH-USD": last["tau"][0]}
    state = resume(found.tau_state, options.rolling)["ETH-USD"]
    assert state.at(last["event_time_ns"][0]) == last["tau"][0]
    assert state.state()[0].max() < found.split["test"].start_ns - PURGE_S * S


def test_label_says_rows_nulls_tau_and_hours(in_home, capsys):
    rolling = said(capsys, "label", "--threshold", "rolling", "--rolling-hours", "1", "--threshold-percentile", "90")
    fixed = said(capsys, "label", "--horizon", "2m", "--returns", "tick", "--session", "1")
    btc = fixed["products"][0]
    assert (btc["rows"], btc["watermark"], btc["gap"], btc["no_quote"]) == (3 * 3600, 120, 0, 0)
    assert btc["usable"] == 3 * 3600 - 120 - 900
    assert btc["share"] == pytest.approx(0.05, abs=0.001)
    assert btc["tau"] == btc["tau_low"] == btc["tau_high"]
    assert sum(h["rows"] for h in btc["hours"]) == btc["usable"]
    eth = rolling["products"][1]
    assert eth["tau_low"] < eth["tau"] < eth["tau_high"]
    # after each pause of more than the window's hour, half an hour must have ended again
    assert eth["without_tau"]["history"] >= 2 * (1800 + 60)
    assert sum(h["rows"] for h in eth["hours"]) == eth["usable"] - sum(eth["without_tau"].values())
    assert {h["hour"][14:] for h in eth["hours"]} == {"00"}


@pytest.mark.parametrize("plot", [(), ("--plot", "here.png")])
def test_label_prints_and_draws(in_home, capsys, monkeypatch, tmp_path, plot):
    monkeypatch.chdir(tmp_path)
    code, out, _ = volspike(capsys, "label", *plot)
    assert (code, "no quote" in out, "spikes per hour" in out) == (0, True, True)
    picture = tmp_path / "here.png" if plot else settings().data / "reports" / "labels.png"
    assert picture.name in out
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_a_picture_that_cannot_be_drawn_is_one_line(in_home, capsys, tmp_path):
    (tmp_path / "file").write_text("")
    for plot, code, word in (
        ("labels.docx", 2, "ends in .png"),
        ("", 2, "ends in .png"),
        ("file/labels.png", 1, "give another --plot"),
    ):
        got, _, err = volspike(capsys, "label", "--plot", str(tmp_path / plot))
        assert (got, word in err) == (code, True), err
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def apart(found):
    """Least distance on the clock between rows of two blocks, seconds."""
    times = [np.sort(found.frame.filter(pl.col("block") == b)["event_time_ns"].to_numpy()) for b in BLOCKS]
    out = []
    for a, b in combinations(times, 2):
        at = np.searchsorted(a, b)
        out.append(np.abs(b - a[np.minimum(at, len(a) - 1)]).min())
        out.append(np.abs(b - a[np.maximum(at - 1, 0)]).min())
    return min(out) / S


@pytest.mark.parametrize(
    "how",
    [
        {},
        {"horizon_s": 120},
        {"each_session": True},
        {"each_session": True, "sessions": ("aa", "cc")},
        {"train_sessions": ("aa",), "val_sessions": ("bb",), "test_sessions": ("cc",)},
        {"train_sessions": ("cc",), "val_sessions": ("bb",), "test_sessions": ("aa",)},
        {"rolling_hours": 1.0},
    ],
)
def test_blocks_are_a_purge_apart_and_every_row_is_accounted_for(in_home, how):
    options = TrainOptions(**how)
    frame = labels_of(options)
    found = spikes(frame, options)
    assert apart(found) >= options.purge_s == options.horizon_s + 900
    usable = frame.filter(pl.col("sigma_fwd").is_not_null() & (pl.col("coverage_s") >= 900)).height
    missing = sum(n for counts in found.missing.values() for n in counts.values())
    assert found.frame.height + found.split.lost + missing == usable
    assert all(found.split[b].rows == found.frame.filter(pl.col("block") == b).height for b in BLOCKS)


def test_each_session_is_split_in_time_and_whole_sessions_stay_whole(in_home, capsys):
    each = said(capsys, "split", "--sessions", "1,2")
    assert [s["session"] for s in each["sessions"]] == [ONE, TWO]
    for session in each["sessions"]:
        kept = sum(session[b] for b in BLOCKS)
        assert session["train"] / kept == pytest.approx(0.7, abs=0.02)
    assert any("reaches past the start" in w for w in each["warnings"])
    chosen = ("--train-sessions", "1", "--val-sessions", "2", "--test-sessions", THREE[:4])
    whole = said(capsys, "split", *chosen, "--min-coverage", "0")
    rows = {s["session"]: s for s in whole["sessions"]}
    assert (rows[ONE]["validation"], rows[ONE]["test"], rows[TWO]["train"]) == (0, 0, 0)
    assert rows[ONE]["train"] == 2 * (3 * 3600 - 60)  # an hour lies before the next: nothing is lost
    last, first = 6 * 3600 - 61, 6.05 * 3600  # of the second and the third
    assert whole["lost"] == 2 * (last - (first - PURGE_S))
    assert "under 20" in whole["warnings"][0]


@pytest.mark.parametrize(
    ("args", "code", "word"),
    [
        (["--sessions", "1,4"], 2, "'4' fits 0 sessions"),
        (["--sessions", "1,aa"], 2, "named already"),
        (["--sessions", "zz"], 2, "session 'zz' fits 0"),
        (["--train-sessions", "1", "--val-sessions", "2"], 2, "all three or none"),
        (["--train-sessions", "1", "--val-sessions", "2", "--test-sessions", "2"], 2, "two blocks"),
        (["--sessions", "1", "--session", "2"], 2, "give one of them"),
        (["--sessions", "1", "--train-ratio", "0.9"], 2, "sum to 1"),
        (["--exclude-products", "BTC-USD,ETH-USD"], 1, "after the exclusion"),
        (["--threshold", "sliding"], 2, "fixed or rolling"),
        (["--rolling-hours", "2"], 2, "--threshold rolling"),
        (["--threshold", "rolling", "--rolling-hours", "0"], 2, "--rolling-hours is 0"),
        (["--threshold", "rolling", "--tau", "1e-5"], 2, "cannot roll"),
        (["--horizon", "1s"], 2, "--horizon is 1 s"),
        (["--horizon", "soon"], 2, "such as 60s"),
        (["--returns", "2s"], 2, "1s or tick"),
        (["--tau", "nan"], 2, "--tau is nan"),
        (["--horizon", "1h", "--session", "2"], 1, "replay a longer tape"),
    ],
)
def test_split_says_what_is_wrong(in_home, capsys, args, code, word):
    got, _, err = volspike(capsys, "split", *args)
    assert (got, word in err) == (code, True), err


def test_no_spikes_and_all_spikes_are_counted_and_said(in_home, capsys):
    for tau, share in (("1", 0.0), ("1e-9", 1.0)):
        split = said(capsys, "split", "--tau", tau)
        assert [b["spikes"] for b in split["blocks"]] == [share * b["rows"] for b in split["blocks"]]
        assert sum("nothing can be learned" in w for w in split["warnings"]) == 3
        assert {h["share"] for p in said(capsys, "label", "--tau", tau)["products"] for h in p["hours"]} == {share}


def test_one_product_is_enough(in_home, capsys):
    assert list(said(capsys, "split", "--exclude-products", "ETH-USD")["tau"]) == ["BTC-USD"]


def test_an_hour_shows_an_absolute_tau_but_has_no_blocks(data_dir, capsys):
    training_tables.write(seconds=2700, products=("BTC-USD",))
    assert said(capsys, "label")["products"][0]["tau"] is None
    product = said(capsys, "label", "--tau", "2e-5")["products"][0]
    assert (product["tau"], sum(h["rows"] for h in product["hours"])) == (2e-5, 2700 - 960)
    assert volspike(capsys, "split")[0] == 1


@pytest.mark.parametrize("threshold", ["fixed", "rolling"])
def test_a_product_that_hardly_moves_is_refused_and_the_others_go_on(data_dir, capsys, threshold):
    training_tables.write(seconds=3 * 3600, products=("BTC-USD", "DEAD-USD", "SHORT-USD"), flat=("DEAD-USD",))
    split = said(capsys, "split", "--threshold", threshold)
    assert sorted(split["tau"]) == ["BTC-USD", "SHORT-USD"]
    assert "tau is 0" in split["refused"]["DEAD-USD"]
    label = said(capsys, "label", "--threshold", threshold)
    assert [p["tau"] is None for p in label["products"]] == [False, True, False]


@pytest.mark.parametrize("damage", [lambda p: p.unlink(), lambda p: p.write_bytes(p.read_bytes()[:1000])])
@pytest.mark.parametrize("name", ["spike_features", "quotes"])
def test_a_part_that_is_gone_or_cut_off_is_named(data_dir, capsys, name, damage):
    training_tables.write(seconds=900, products=("BTC-USD",))
    part = tables.parts(name)[0].path
    damage(part)
    for command in ("label", "split"):
        code, out, err = volspike(capsys, command)
        assert (code, out, f"table {name}: part {part}" in err) == (1, "", True), err
        assert len(err.splitlines()) == 1, err


def test_features_without_quotes_and_quotes_without_features(data_dir, capsys):
    """Labels need both: a product with one of them is said to be without a row, and none stops the others."""
    training_tables.write(seconds=3 * 3600, products=("BTC-USD",))
    whole = {name: tables.scan(name).collect() for name in ("spike_features", "quotes")}
    for name, product in (("spike_features", "NOQUOTE-USD"), ("quotes", "NOROWS-USD")):
        table = whole[name].with_columns(product_id=pl.lit(product)).to_arrow().cast(tables.schema(name))
        n = whole[name]["n"].to_numpy()
        tables.append(name, table, n, {(training_tables.SESSION, product): int(n.max())})
    label = {p["product"]: p for p in said(capsys, "label")["products"]}
    assert sorted(label) == ["BTC-USD", "NOQUOTE-USD"]
    assert (label["NOQUOTE-USD"]["labelled"], label["NOQUOTE-USD"]["no_quote"]) == (0, 3 * 3600)
    assert volspike(capsys, "label")[0] == 0  # and is drawn all the same
    split = said(capsys, "split")
    assert list(split["tau"]) == ["BTC-USD"]
    assert "no row has a label" in split["refused"]["NOQUOTE-USD"]
    code, _, err = volspike(capsys, "split", "--exclude-products", "BTC-USD")
    assert (code, "no usable row" in err) == (1, True)

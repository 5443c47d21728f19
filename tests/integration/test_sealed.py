"""The last block opens once, whoever asks, and every attempt is on record."""

from __future__ import annotations

import subprocess
import sys

import msgspec
import pytest

from feature_repo.errors import SealedError, StoreError
from infra.settings import settings
from tests import manifests
from training import artefact as art
from training.sealed import open_block, opening, split_key


def block(start, end):
    return {"start_ns": start, "end_ns": end, "rows": 10}


def manifest(*, test=(3000, 4000), last=9, sessions=("5e55101234567890",)):
    blocks = {"train": block(0, 1000), "validation": block(1500, 2000), "test": block(*test)}
    return manifests.manifest(
        training=art.Training(blocks, ["BTC-USD"], list(sessions), 900.0, 960),
        data={"quotes": {"last_n": {f"{sessions[0]}/BTC-USD": last}, "parts": []}},
    )


def test_a_block_opens_once_for_all_runs_on_its_split(data_dir):
    one = manifest()
    assert opening("run-a", manifest=one) is None
    first = open_block("run-a", "evaluate --final", manifest=one)
    assert (first.run_id, first.reason, first.start_ns, first.end_ns) == ("run-a", "evaluate --final", 3000, 4000)
    for run in ("run-a", "run-b"):
        with pytest.raises(SealedError, match=r"opened by run run-a .* record newer data"):
            open_block(run, "once more", manifest=one)
    found = opening("run-b", manifest=one)
    assert found is not None
    assert (found.run_id, found.at, found.overlaps) == ("run-a", first.at, ())
    assert len(found.refused) == 2
    assert "run-b" in found.refused[1]


def test_another_split_has_a_seal_of_its_own_and_says_what_of_it_was_seen(data_dir):
    first = open_block("run-a", "first", manifest=manifest())
    assert open_block("run-b", "newer", manifest=manifest(test=(3500, 5000), last=12)).overlaps == (first.key,)
    assert open_block("run-c", "later", manifest=manifest(test=(6000, 7000), last=20)).overlaps == ()
    for seen in ((3000, 4001), (3100, 4900)):  # one row more, or another cut: nothing in it is new
        with pytest.raises(SealedError, match="all of this block was seen with it"):
            open_block("run-e", "again", manifest=manifest(test=seen, last=13))
    elsewhere = manifest(test=(3500, 5000), sessions=("77aa2b1234567890",))
    assert open_block("run-d", "other session", manifest=elsewhere).overlaps == ()


def test_the_key_names_data_and_split_and_survives_a_compaction():
    key = split_key(manifest())
    compacted = msgspec.structs.replace(manifest(), data={"quotes": manifest().data["quotes"] | {"parts": [{"x": 1}]}})
    assert split_key(compacted) == key
    assert len({key, split_key(manifest(last=10)), split_key(manifest(test=(3001, 4000)))}) == 3


def test_deleting_the_record_does_not_close_the_block(data_dir):
    from training.tracking import tracking

    first = open_block("run-a", "first", manifest=manifest())
    with tracking() as client:
        client.delete_experiment(client.get_experiment_by_name(f"sealed/{first.key}").experiment_id)
    with pytest.raises(SealedError, match="opened by run run-a"):
        open_block("run-b", "again", manifest=manifest())


@pytest.mark.slow
def test_of_processes_that_ask_at_once_one_gets_in(data_dir, tmp_path):
    """Two processes wait for one line on standard input, then all open the same block."""
    (tmp_path / "manifest.json").write_bytes(msgspec.json.encode(manifest()))
    opening("nobody", manifest=manifest())  # makes the database, so that they meet in the opening itself
    code = (
        "import sys, msgspec; from training import artefact as art, sealed\n"
        "from feature_repo.errors import SealedError\n"
        "m = msgspec.json.decode(open(sys.argv[1], 'rb').read(), type=art.Manifest)\n"
        "import mlflow; print('ready', flush=True); sys.stdin.readline()\n"
        "try: print('opened by', sealed.open_block(sys.argv[2], 'race', manifest=m).run_id)\n"
        "except SealedError: print('refused')"
    )
    path = str(tmp_path / "manifest.json")
    racers = [
        subprocess.Popen(  # our own interpreter
            [sys.executable, "-c", code, path, f"run-{i}"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        for i in range(2)
    ]
    for racer in racers:
        assert racer.stdout.readline() == "ready\n"
    for racer in racers:
        racer.stdin.write("go\n")
        racer.stdin.flush()
    said = [racer.communicate(timeout=120)[0].strip() for racer in racers]
    assert sorted(s.split()[0] for s in said) == ["opened", "refused"], said


def test_a_run_that_does_not_exist_is_named(data_dir):
    with pytest.raises(StoreError, match="nobody"):
        open_block("nobody", "why not")
    assert not (settings().models / "nobody").exists()

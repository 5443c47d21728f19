"""The demonstration on a recording: it does what the tape allows, and says honestly where it stops."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from infra.settings import ROOT


@pytest.mark.slow
@pytest.mark.parametrize(
    ("tape", "why"),
    [
        ("advanced_BTC-ETH_20260809_24s", "no usable row"),
        ("exchange_BTC-USD_20180424_l2_60min", "no product is left to train on"),
        ("tickers_BTC-USD_20251130_342min", "validation block has 0 spikes"),
    ],
)
def test_a_recording_that_holds_too_little_is_refused(
    tape: str, why: str, shared_data: Path, tmp_path: Path, free_port: int
) -> None:
    env = {
        **os.environ,
        "VOLSPIKE_DATA": str(tmp_path),
        "VOLSPIKE_MLFLOW_TRACKING_URI": f"sqlite:///{tmp_path}/mlflow.db",
        "VOLSPIKE_REDIS_PORT": str(free_port),
    }
    command = [str(Path(sys.executable).with_name("volspike")), "demo", "--tape", f"{shared_data / tape}.ndjson.gz"]
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 1, done.stderr
    assert why in done.stdout
    assert "materialize" in done.stdout
    assert "Traceback" not in done.stdout + done.stderr
    assert not (tmp_path / "run" / "services.json").exists() or '"redis"' not in (
        tmp_path / "run" / "services.json"
    ).read_text()

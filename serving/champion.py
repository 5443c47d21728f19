"""The champion in memory: follows ``<data>/models/champion.json`` and swaps in one step.

The registry is the truth; ``volspike promote`` and ``rollback`` write this small view of it, so that serving neither
imports MLflow (3 s) nor depends on it being up. What doesn't verify is refused and logged, and what is there stays.
"""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import msgspec
import structlog

from feature_repo.errors import ArtefactError, ContractError, VolspikeError
from infra.imports import without
from serving.schemas import Model
from training.artefact import Artefact, load

POINTER: Final = "champion.json"
POLL_S: Final = 1.0
"""How often the pointer is looked at: one stat call."""
RETRY_S: Final = 15.0
"""When a refused artefact is tried again though its pointer is unchanged: its folder may still be being copied."""
_log = structlog.get_logger("volspike.serving")


class Pointer(msgspec.Struct, frozen=True):
    """What ``champion.json`` says; ``path`` is absolute or relative to the folder of the file."""

    version: str | int
    path: str
    run_id: str | None = None
    sha256: str | None = None


@dataclass(frozen=True, slots=True)
class Loaded:
    """A verified artefact and what it is called in answers."""

    artefact: Artefact
    model: Model
    run_id: str | None


class Champion:
    """Holds the champion; ``current`` is None until one has verified.

    Parameters
    ----------
    folder
        Folder of models, which holds :data:`POINTER`.
    name
        Registered model's name.
    """

    def __init__(self, folder: Path, name: str) -> None:
        self.current: Loaded | None = None
        self.refused: str | None = None
        """Why the artefact that the pointer names is not served; None if it is."""
        self.refused_in_public: str | None = None
        """The same for clients: names no file of this machine."""
        self._file = folder / POINTER
        self._name = name
        self._tried: tuple[int, int, int] | None = None
        self._tried_at = 0.0
        self._polling = threading.Lock()
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Look at the pointer now and every :data:`POLL_S` seconds, in a thread of its own."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._watch, name="champion", daemon=True)
            self._thread.start()

    def stop(self) -> None:
        """End the thread."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join()

    def poll(self) -> None:
        """Load the artefact if the pointer changed, or if it was refused a while ago; waits for a poll under way."""
        with self._polling:
            self._poll()

    def _poll(self) -> None:
        try:
            stat = self._file.stat()
        except FileNotFoundError:
            self.refused = self.refused_in_public = "no champion yet: run `volspike train`, then `volspike promote`"
            return
        seen = (stat.st_mtime_ns, stat.st_size, stat.st_ino)
        now = time.monotonic()
        if seen == self._tried and (self.refused is None or now - self._tried_at < RETRY_S):
            return
        self._tried, self._tried_at = seen, now
        try:
            loaded = self._load()
        except (VolspikeError, OSError, msgspec.DecodeError) as error:
            if str(error) != self.refused:
                keeping = self.current.model.version if self.current else None
                _log.error("champion refused", reason=str(error), keeping_version=keeping)
            self.refused = str(error)
            # A contract's words name hashes and features; those of a file, its path.
            is_contract = isinstance(error, ContractError) and not isinstance(error, ArtefactError)
            self.refused_in_public = str(error) if is_contract else "its artefact does not verify; the log says why"
            return
        self.current, self.refused, self.refused_in_public = loaded, None, None
        _log.info("champion loaded", version=loaded.model.version, digest=loaded.artefact.digest)

    def _load(self) -> Loaded:
        pointer = msgspec.json.decode(self._file.read_bytes(), type=Pointer)
        # xgboost imports scikit-learn, scipy.stats and pandas for its estimator classes where it finds scikit-learn:
        # 4 s of 6 s. Serving needs the booster alone, and xgboost does without where the import fails.
        with without("sklearn"):
            artefact = load(self._file.parent / pointer.path)
        if pointer.sha256 is not None and pointer.sha256 != artefact.digest:
            raise ArtefactError(
                f"champion.json names the artefact with sha256 {pointer.sha256}, {pointer.path} has {artefact.digest}; "
                "promote again"
            )
        return Loaded(artefact, Model(self._name, str(pointer.version)), pointer.run_id)

    def _watch(self) -> None:
        self.poll()
        while not self._stop.wait(POLL_S):
            self.poll()

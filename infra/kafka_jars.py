"""What Apache Kafka needs to run here: a Java that is there, its jars through Maven, and their classes ready to map.

The jars of ``infra/kafka/pom.xml`` are kept in ``~/.cache/volspike`` (or ``XDG_CACHE_HOME``) for every data folder.
Maven asks the repository that it is configured for.

Beside them lies a class archive of the JVM: with it a broker starts with half the work (measured: 3.6 s of CPU time
instead of 7.9), which a test that kills it fifty times waits for fifty times. A JVM that the archive doesn't fit goes
without.
"""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Final, NamedTuple

from feature_repo.errors import StoreError

HERE: Final = Path(__file__).parent / "kafka"
DOWNLOAD_S: Final = 600.0
LEAST_JAVA: Final = 17
_COPY: Final = "org.apache.maven.plugins:maven-dependency-plugin:3.8.1:copy-dependencies"
_JVM: Final = (
    *("-Xms256m", "-Xmx512m", "-XX:+UseSerialGC", "-Xshare:auto", "-XX:+ExitOnOutOfMemoryError"),
    "-XX:TieredStopAtLevel=1",  # the second compiler takes a core for minutes, to serve a machine's own few clients
    *("-Djava.awt.headless=true", f"-Dlog4j2.configurationFile={HERE / 'log4j2.properties'}"),
)


class Java(NamedTuple):
    """A Java that Kafka runs on: path of its program, and its version."""

    program: str
    version: str


class Kafka(NamedTuple):
    """How to run a class of Kafka."""

    java: Java
    jars: Path

    @property
    def archive(self) -> Path:
        """The class archive of this Java; it may be missing."""
        return self.jars / f"classes-{self.java.version}.jsa"

    def command(self, *arguments: str, jvm: tuple[str, ...] = ()) -> list[str]:
        """Arguments that run it: a class and its own arguments, with more options of the JVM before them."""
        shared = (f"-XX:SharedArchiveFile={self.archive}",) if self.archive.exists() else ()
        # the JVM itself expands the star, and the archive takes jars only, no folder of settings
        return [self.java.program, *_JVM, *shared, *jvm, "-cp", f"{self.jars}/*", *arguments]


def find_java() -> Java:
    """Find a Java that Kafka runs on.

    Raises
    ------
    StoreError
        If there is none, or it is too old.
    """
    home = os.environ.get("JAVA_HOME")
    found = shutil.which("java", path=f"{home}/bin" if home else None)
    said = subprocess.run([found, "-version"], capture_output=True, text=True).stderr if found else ""
    version = re.search(r'version "((\d+)[\d.]*)', said)
    if found is None or version is None or int(version[2]) < LEAST_JAVA:
        raise StoreError(
            f"Kafka needs Java {LEAST_JAVA} or later, found {said.splitlines()[0] if said else 'none'}: install it "
            "(apt-get install openjdk-17-jre-headless), or do without: the embedded broker needs nothing"
        )
    return Java(found, version[1])


def prepare(warm: Callable[[Kafka, Path], None]) -> Kafka:
    """Have Java, the jars and the class archive, the two latter made where they are missing.

    Parameters
    ----------
    warm
        Starts and stops a broker in a folder, with the options of `archiving`; called where the archive is missing.

    Raises
    ------
    StoreError
        If Java or Maven is missing, or Maven can't bring the jars.
    """
    java, pom = find_java(), HERE / "pom.xml"
    version = re.search(r"<kafka.version>(.+)</kafka.version>", pom.read_text())
    assert version is not None  # noqa: S101
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "volspike"
    kafka = Kafka(java, cache / f"kafka-{version[1]}")
    cache.mkdir(parents=True, exist_ok=True)
    with (cache / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # two that start at once: one brings them, the other waits
        if not kafka.jars.is_dir():
            _bring(pom, kafka.jars)
        if not kafka.archive.exists():
            _archive(kafka, warm)
    return kafka


def archiving(kafka: Kafka) -> tuple[str, ...]:
    """Options of a JVM that writes the archive when it ends in order."""
    return (f"-XX:ArchiveClassesAtExit={_half(kafka.archive)}", "-Xlog:cds=off", "-Xlog:cds+dynamic=off")


def _half(path: Path) -> Path:
    return path.with_name(f"{path.name}.{os.getpid()}")


def _bring(pom: Path, there: Path) -> None:
    maven = shutil.which("mvn")
    if maven is None:
        raise StoreError(
            "Kafka's jars come through Maven, and mvn isn't there: install it, for example with apt-get install maven"
        )
    print("volspike: bringing Kafka's jars (44 MB, once)", file=sys.stderr)
    half = _half(there)
    command = [maven, "-B", "-q", "-f", str(pom), _COPY, f"-DoutputDirectory={half}", "-DincludeScope=runtime"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=DOWNLOAD_S)
        if done.returncode:
            wrong = [line for line in done.stdout.splitlines() if "[ERROR]" in line]
            raise StoreError(f"Maven couldn't bring Kafka's jars: {wrong[0] if wrong else done.stderr.strip()[-300:]}")
        half.rename(there)
    except subprocess.TimeoutExpired as error:
        raise StoreError(
            f"Maven didn't bring Kafka's jars within {DOWNLOAD_S:g} s: is its repository reachable?"
        ) from error
    finally:
        shutil.rmtree(half, ignore_errors=True)


def _archive(kafka: Kafka, warm: Callable[[Kafka, Path], None]) -> None:
    folder = _half(kafka.jars.with_name("warm"))
    try:
        warm(kafka, folder)
        if _half(kafka.archive).exists():
            _half(kafka.archive).rename(kafka.archive)
    except StoreError as error:
        # the archive only saves time: a broker that really can't start will say so itself, in its own folder
        print(f"volspike: Kafka's classes were not archived: {error}", file=sys.stderr)
    finally:
        shutil.rmtree(folder, ignore_errors=True)

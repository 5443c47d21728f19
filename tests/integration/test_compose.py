"""The compose file without Docker: its commands, ports and health checks, read from it and run as plain processes."""

from __future__ import annotations

import os
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, Final

import pytest
import yaml

from infra import cli
from infra.settings import ROOT, Settings
from tests.conftest import free_port, require_programs

Until = Callable[..., bool]
COMPOSE: Final = yaml.safe_load((ROOT / "infra" / "compose.yaml").read_text())
SERVICES: Final[dict[str, dict[str, Any]]] = COMPOSE["services"]
DOCKERFILE: Final = (ROOT / "infra" / "Dockerfile").read_text()
PORTS: Final = {"kafka": 9092, "redis": 6379, "mlflow": 5000, "service": 3000}
"""Default ports of the design."""


def targets() -> dict[str, str]:
    """Stages of the Dockerfile: name and text."""
    parts = re.split(r"^FROM (\S+) AS (\S+)$", DOCKERFILE, flags=re.MULTILINE)
    return {name: text for name, text in zip(parts[2::3], parts[3::3], strict=True)}


def command_of(name: str) -> list[str]:
    """What a service runs: its image's entry point with the command behind it."""
    service = SERVICES[name]
    stage = targets()[service["build"]["target"]] if "build" in service else ""
    entry = re.search(r"^ENTRYPOINT (\[.*\])$", stage, flags=re.MULTILINE)
    return [*(yaml.safe_load(entry[1]) if entry else []), *service["command"]]


def check_of(name: str) -> list[str]:
    kind, *test = SERVICES[name]["healthcheck"]["test"]
    assert kind in ("CMD", "CMD-SHELL")
    return list(test) if kind == "CMD" else ["sh", "-c", *test]


def settings_of(name: str) -> dict[str, str]:
    """Environment of a service, with the defaults of what it takes from the caller."""
    given = SERVICES[name].get("environment", {})
    return {key: re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", str(value)) for key, value in given.items()}


@pytest.mark.parametrize("name", SERVICES)
def test_it_is_published_on_loopback_only_at_the_default_port(name: str) -> None:
    published = SERVICES[name].get("ports", [])
    assert len(published) == (name in PORTS)
    for port in published:
        address, outside, inside = re.fullmatch(r"([\d.]+):(\$\{\w+:-\d+\}):(\d+)", port).groups()  # type: ignore[union-attr]
        assert address == "127.0.0.1"
        variable, default = re.fullmatch(r"\$\{(\w+):-(\d+)\}", outside).groups()  # type: ignore[union-attr]
        assert int(default) == int(inside) == PORTS[name]
        assert variable.removeprefix("VOLSPIKE_").lower() in Settings.model_fields


@pytest.mark.parametrize("name", SERVICES)
def test_it_runs_as_an_ordinary_user_and_is_watched(name: str) -> None:
    service = SERVICES[name]
    assert service["healthcheck"]["test"] and service["restart"] == "unless-stopped"
    assert service["cap_drop"] == ["ALL"] and service["security_opt"] == ["no-new-privileges:true"]
    if "build" in service:
        stage = targets()[service["build"]["target"]]
        users = re.findall(r"^USER (\S+)$", targets()["base"] + stage, flags=re.MULTILINE)
        assert users[-1] == "volspike"
    else:
        assert service["user"] not in ("root", "0")
    for other, how in service.get("depends_on", {}).items():
        assert other in SERVICES and how == {"condition": "service_healthy"}
    for volume in service["volumes"]:
        assert volume.split(":")[0] in COMPOSE["volumes"]


@pytest.mark.parametrize("name", [n for n in SERVICES if "VOLSPIKE_DATA" in settings_of(n)])
def test_its_settings_are_known_and_valid(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for key, value in settings_of(name).items():
        assert key.removeprefix("VOLSPIKE_").lower() in Settings.model_fields, key
        monkeypatch.setenv(key, value)
    assert Settings().products == ("BTC-USD", "ETH-USD")


OURS: Final = [n for n in SERVICES if command_of(n)[0] == "volspike"]


@pytest.mark.parametrize(
    "command", [*map(command_of, OURS), *map(check_of, ("ingest", "schedule"))], ids=" ".join
)
def test_the_command_line_takes_its_command(command: list[str]) -> None:
    assert command[0] == "volspike"
    with pytest.raises(SystemExit) as end:
        cli.main([*command[1:], "--help"])
    assert end.value.code == 0


def test_the_image_of_the_ingestor_takes_its_arguments() -> None:
    assert command_of("ingest")[:2] == ["volspike", "ingest"]
    with pytest.raises(SystemExit) as end:
        cli.main(["ingest", "--minutes", "15", "--help"])
    assert end.value.code == 0
    with pytest.raises(SystemExit) as end:
        cli.main(["ingest", "--minutes", "nonsense"])
    assert end.value.code == 2


def test_what_the_images_copy_is_there() -> None:
    kept = (ROOT / "infra" / "Dockerfile.dockerignore").read_text().splitlines()
    for sources in re.findall(r"^COPY (?!--from)(.+) \S+$", DOCKERFILE, flags=re.MULTILINE):
        for source in sources.split():
            assert (ROOT / source).exists() and f"!{source}" in kept


class Machine:
    """The containers' names, ports and folders as those of this machine."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.ports = {str(port): str(free_port()) for port in (*PORTS.values(), 29092)}

    def text(self, name: str, text: str) -> str:
        text = re.sub(r"\b(?:kafka|redis|mlflow):(?=\d)", "127.0.0.1:", text)
        text = re.sub(r"(?<=//)mlflow\b", "127.0.0.1", text).replace("0.0.0.0", "127.0.0.1")  # noqa: S104
        text = re.sub(r"\b(?:9092|29092|6379|5000|3000)\b", lambda found: self.ports[found[0]], text)
        volume = next(v.split(":")[0] for v in SERVICES[name]["volumes"])
        return re.sub(r"/data\b", str(self.folder / volume), text)

    def environment(self, name: str, **more: str) -> dict[str, str]:
        ours = {key: self.text(name, value) for key, value in settings_of(name).items()}
        programs = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        home = {"VOLSPIKE_DATA": self.text(name, "/data")}  # as ENV of the image has it
        return {**os.environ, "PATH": programs, **home, **ours, **more}

    @contextmanager
    def run(self, name: str, **more: str) -> Iterator[subprocess.Popen[bytes]]:
        """Run a service for the time of the block; it must end in order."""
        (self.folder / self.text(name, "/data")).mkdir(parents=True, exist_ok=True)
        command = [self.text(name, part) for part in command_of(name)]
        with (self.folder / f"{name}.log").open("w") as log:
            process = subprocess.Popen(
                command,
                cwd=ROOT,
                env=self.environment(name, **more),
                stdout=log,
                stderr=log,
                stdin=subprocess.DEVNULL,
                start_new_session=True,
            )
            try:
                yield process
                process.terminate()
                assert process.wait(30) in (0, -signal.SIGTERM, 128 + signal.SIGTERM), name
            finally:
                with suppress(ProcessLookupError):
                    os.killpg(
                        process.pid, signal.SIGKILL
                    )  # as the end of a container takes its last process along
                process.wait()

    def healthy(self, name: str) -> bool:
        """Whether the service's own health check passes."""
        command = [self.text(name, part) for part in check_of(name)]
        done = subprocess.run(command, cwd=ROOT, env=self.environment(name), capture_output=True, timeout=60)
        return done.returncode == 0

    def log(self, name: str) -> str:
        return f"{name}: {shlex.join(command_of(name))}\n{(self.folder / f'{name}.log').read_text()[-2000:]}"


@pytest.mark.slow
def test_all_of_it_comes_up_and_is_healthy(tmp_path: Path, until: Until) -> None:
    require_programs("java", "mvn", "redis-server", "redis-cli")
    machine = Machine(tmp_path)
    feed = free_port()
    with ExitStack() as stack:
        exchange = subprocess.Popen(
            [
                sys.executable,
                "-m",
                "infra.cli",
                "exchange",
                "--port",
                str(feed),
                "--products",
                "BTC-USD,ETH-USD",
            ],
            cwd=ROOT,
            stdout=subprocess.DEVNULL,
        )
        stack.callback(exchange.wait)
        stack.callback(exchange.kill)
        started: list[str] = []
        while len(started) < len(SERVICES):
            ready = [
                n
                for n in SERVICES
                if n not in started and set(SERVICES[n].get("depends_on", {})) <= set(started)
            ]
            for name in ready:
                assert not machine.healthy(name), f"{name} was healthy before it ran"
            for name in ready:
                stack.enter_context(machine.run(name, VOLSPIKE_FEED=f"ws://127.0.0.1:{feed}"))
            for name in ready:
                assert until(lambda name=name: machine.healthy(name), 120, 0.5), machine.log(name)
            started += ready

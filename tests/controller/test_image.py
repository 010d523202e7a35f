"""The image: what is copied into it, and the entry point that takes the place of an older manager's."""

import fnmatch
import os
import re
import signal
import ssl
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from cluster_tools import DEPLOY, SYSTEM, Admin, control_plane, needs_cluster
from prometheus_tools import free_port, get, wait_until


def is_left_out(path: str, rules: list[str]) -> bool:
    """Whether a .dockerignore keeps a file out: the last rule about it or a folder above decides."""
    parts = path.split("/")
    left_out = False
    for rule in rules:
        pattern = rule.lstrip("!").split("/")
        above = parts[: len(pattern)]
        if len(above) == len(pattern) and all(map(fnmatch.fnmatchcase, above, pattern)):
            left_out = not rule.startswith("!")
    return left_out


def test_image_has_what_its_dockerfile_copies() -> None:
    root = DEPLOY.parent
    lines = (root / ".dockerignore").read_text().splitlines()
    ignored = [line for line in lines if line and not line.startswith(("#", "**"))]
    text = (root / "Dockerfile").read_text()
    copied = re.findall(r"^COPY (?!--from)(?:--\S+ )?(.+) \S+$", text, re.MULTILINE)
    sources = " ".join(copied).split()
    assert "deploy/image/manager.py" in sources
    for source in sources:
        assert (root / source).exists()
        assert not is_left_out(source, ignored), source
    for other in ("tests", "deploy/helm", ".git"):
        assert is_left_out(other, ignored), other


def children(process: subprocess.Popen[str]) -> dict[str, int]:
    """Process numbers of the two programs that a manager runs."""
    listed = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    commands = {pid: Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ") for pid in listed}
    names = {"/fleetopt serve ": "service", "/fleetopt-controller ": "controller"}
    return {names[name]: int(pid) for pid, command in commands.items() for name in names if name in command}


@pytest.fixture(scope="module")
def kubeconfig(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("plane")
    with control_plane(folder) as plane:
        Admin(plane).prepare()
        yield plane.kubeconfig(folder / "kubeconfig")


@needs_cluster
@pytest.mark.parametrize(("ended", "code"), [("manager", 0), ("service", 1), ("controller", 0)])
def test_manager_runs_service_and_controller_as_one(ended: str, code: int, kubeconfig: Path) -> None:
    """Started as the reference's chart starts it: its arguments and variables, and no service anywhere."""
    probes, metrics = free_port(), free_port()
    programs = Path(sys.executable).parent
    environ = os.environ | {
        "PATH": f"{programs}{os.pathsep}{os.environ['PATH']}",
        "KUBECONFIG": str(kubeconfig),
        "POD_NAMESPACE": SYSTEM,
        "LOG_LEVEL": "info",
        "PROMETHEUS_BASE_URL": "https://127.0.0.1:1",
        "PROMETHEUS_TLS_INSECURE_SKIP_VERIFY": "true",
        "WVA_SCALE_TO_ZERO": "false",
    }
    command = [
        sys.executable,
        str(DEPLOY / "image" / "manager.py"),
        "--leader-elect=true",
        f"--health-probe-bind-address=:{probes}",
        f"--metrics-bind-address=:{metrics}",
        "--metrics-secure=true",
    ]
    unverified = ssl.create_default_context()
    unverified.check_hostname, unverified.verify_mode = False, ssl.CERT_NONE
    with subprocess.Popen(command, env=environ, stderr=subprocess.PIPE, text=True) as process:
        try:
            wait_until(lambda: get(f"http://127.0.0.1:{probes}/readyz") == "ok\n", 120.0)
            with pytest.raises(urllib.error.HTTPError, match="401") as refused:
                urllib.request.urlopen(f"https://127.0.0.1:{metrics}/metrics", context=unverified)
            refused.value.close()
            both = children(process)
            assert set(both) == {"service", "controller"}
            os.kill(({"manager": process.pid} | both)[ended], signal.SIGTERM)
            _, errors = process.communicate(timeout=60)
        finally:
            process.terminate()
    assert process.returncode == code, errors
    for pid in both.values():
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


def test_manager_told_to_end_while_its_programs_start_ends_well(tmp_path: Path) -> None:
    """Programs that do not listen for the signal yet die of it; that is no failure."""
    for name in ("fleetopt", "fleetopt-controller"):
        program = tmp_path / name
        program.write_text(f"#!/bin/sh\ntouch {tmp_path}/{name}.began\nexec sleep 60\n")
        program.chmod(0o755)
    environ = os.environ | {"PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}"}
    environ.pop("FLEETOPT_OPTIMIZER_URL", None)
    command = [sys.executable, str(DEPLOY / "image" / "manager.py")]
    with subprocess.Popen(command, env=environ) as process:
        wait_until(lambda: len(list(tmp_path.glob("*.began"))) == 2, 30.0)
        process.terminate()
        assert process.wait(timeout=30) == 0

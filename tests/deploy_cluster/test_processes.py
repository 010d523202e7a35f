"""Background processes and waiting, with real processes."""

import os
import sys
from pathlib import Path

import pytest
from control_plane import ControlPlane
from processes import ComponentError, Daemon, find_binary, missing, wait_until


def python(tmp_path: Path, code: str) -> Daemon:
    return Daemon([sys.executable, "-u", "-c", code], tmp_path / "component.log")


def is_there(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def test_process_that_ends_by_itself_is_an_error_with_the_end_of_its_log(tmp_path: Path) -> None:
    daemon = python(tmp_path, "import sys; sys.exit('address already in use')")
    daemon.start()
    with pytest.raises(ComponentError, match=r"component ended with 1:\naddress already in use"):
        wait_until(lambda: False, "it answers", daemons=[daemon])
    daemon.stop()


def test_time_limit_says_what_was_waited_for_and_what_there_is(tmp_path: Path) -> None:
    daemon = python(tmp_path, "print('still loading'); import time; time.sleep(600)")
    daemon.start()
    try:
        wait_until(lambda: "loading" in daemon.tail(), "it says so", daemons=[daemon])
        with pytest.raises(ComponentError, match=r"not within 0 s: it answers\nno pods\n.*\nstill loading"):
            wait_until(lambda: False, "it answers", 0.0, [daemon], lambda: "no pods")
    finally:
        daemon.kill()


def test_process_that_does_not_want_to_end_is_ended(tmp_path: Path) -> None:
    code = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('up'); time.sleep(600)"
    daemon = python(tmp_path, code)
    daemon.start()
    wait_until(lambda: "up" in daemon.tail(), "it is up", daemons=[daemon])
    pid = daemon.pid
    daemon.stop(limit_s=0.1)
    assert not is_there(pid)


def test_programs_of_the_environment_come_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own, built = tmp_path / "own", tmp_path / "cache" / "fleetopt-cluster"
    for folder in (own, built):
        folder.mkdir(parents=True)
        (folder / "etcd").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("KUBEBUILDER_ASSETS", str(own))
    assert find_binary("etcd") == str(own / "etcd")
    monkeypatch.delenv("KUBEBUILDER_ASSETS")
    assert find_binary("etcd") == str(built / "etcd")


def test_what_is_missing_says_how_to_get_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("KUBEBUILDER_ASSETS", raising=False)
    (etcd, prometheus) = missing(["etcd", "prometheus"])
    assert etcd.startswith("etcd: ")
    assert "build.sh" in etcd
    assert prometheus == "prometheus: apt-get install prometheus"


@pytest.mark.skipif(bool(ControlPlane.binaries_missing()), reason="; ".join(ControlPlane.binaries_missing()))
def test_control_plane_that_cannot_start_leaves_nothing_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The API server is one that complains; etcd is the real one."""
    assets = tmp_path / "assets"
    assets.mkdir()
    server = assets / "kube-apiserver"
    server.write_text("#!/bin/sh\necho no such flag\nexit 3\n")
    server.chmod(0o755)
    started: dict[str, int] = {}
    start = Daemon.start

    def noted(daemon: Daemon) -> None:
        start(daemon)
        started[daemon.name] = daemon.pid

    monkeypatch.setattr(Daemon, "start", noted)
    monkeypatch.setenv("KUBEBUILDER_ASSETS", str(assets))
    folder = tmp_path / "plane"
    folder.mkdir()
    said = r"kube-apiserver ended with 3:\nno such flag"
    with pytest.raises(ComponentError, match=said), ControlPlane(folder):
        pass
    assert list(started) == ["etcd", "kube-apiserver"]
    assert not any(is_there(pid) for pid in started.values())
    assert not (folder / "etcd").exists()

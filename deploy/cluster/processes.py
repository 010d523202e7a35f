"""Processes that run in the background, and waiting for what they do."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

BUILD = Path(__file__).parent / "build.sh"


class ComponentError(RuntimeError):
    """A process ended that should run, or does not do what it should within the time."""


class Daemon:
    """A process with a log, from `start` to `stop`; it can be started again.

    Parameters
    ----------
    command : sequence of str
    log : Path
        Both streams go there, one run after the other.
    environ : mapping
        Added to the environment of this process.
    """

    def __init__(self, command: Sequence[str], log: Path, environ: Mapping[str, str] | None = None) -> None:
        self.command, self.log = list(command), log
        self._environ = {**os.environ, **(environ or {})}
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def name(self) -> str:
        """Name of the log without its suffix."""
        return self.log.stem

    @property
    def pid(self) -> int:
        """Of the process that runs."""
        assert self._process
        return self._process.pid

    def start(self) -> None:
        """Start the process; whether it works is for `check` and for who waits."""
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                self.command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=self._environ
            )

    def check(self) -> None:
        """Raise ComponentError, with the end of the log, when the process has ended by itself."""
        if self._process and self._process.poll() is not None:
            raise ComponentError(f"{self.name} ended with {self._process.returncode}:\n{self.tail()}")

    def tail(self, characters: int = 2000) -> str:
        """Return the end of the log."""
        return self.log.read_text(errors="replace")[-characters:]

    def stop(self, limit_s: float = 20.0) -> None:
        """Ask the process to end, and end it when it has not within the time."""
        if self._process is None:
            return
        self._process.terminate()
        try:
            self._process.wait(limit_s)
        except subprocess.TimeoutExpired:
            self.kill()
        self._process = None

    def kill(self) -> None:
        """End the process at once, as a machine that fails does."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    @contextmanager
    def suspended(self) -> Iterator[None]:
        """Let the process answer nobody meanwhile, as one that hangs."""
        pid = self.pid
        os.kill(pid, signal.SIGSTOP)
        try:
            yield
        finally:
            os.kill(pid, signal.SIGCONT)


def wait_until(
    condition: Callable[[], bool],
    what: str,
    limit_s: float = 60.0,
    daemons: Sequence[Daemon] = (),
    state: Callable[[], str] = str,
    every_s: float = 0.1,
) -> None:
    """Wait for something that must happen; what does not answer yet is waited for too.

    Parameters
    ----------
    condition : callable
        True once it happened. An OSError is a no.
    what : str
        For the error: "the API server answers".
    limit_s : float
        Generous: machines are busy.
    daemons : sequence of Daemon
        When one of them ends there is nothing to wait for.
    state : callable
        What a person would want to see when the time is over.
    every_s : float
        Between two looks.

    Raises
    ------
    ComponentError
    """
    end_s = time.monotonic() + limit_s
    while True:
        for daemon in daemons:
            daemon.check()
        try:
            if condition():
                return
        except OSError:
            pass
        if time.monotonic() > end_s:
            logs = "".join(f"\n--- {daemon.name}:\n{daemon.tail()}" for daemon in daemons)
            raise ComponentError(f"not within {limit_s:g} s: {what}\n{state()}{logs}")
        time.sleep(every_s)


def free_port() -> int:
    """Return a port of the loopback interface that nobody listens on."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def cache_folder() -> Path:
    """Return where build.sh leaves what it builds."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "fleetopt-cluster"


def find_binary(name: str) -> str | None:
    """Return the path of a program: of KUBEBUILDER_ASSETS, of build.sh, or of the PATH."""
    assets = os.environ.get("KUBEBUILDER_ASSETS")
    for folder in ([Path(assets)] if assets else []) + [cache_folder()]:
        if (folder / name).is_file():
            return str(folder / name)
    return shutil.which(name)


def missing(names: Sequence[str]) -> list[str]:
    """Return which of these programs are not there, each with how to get it."""
    debian = {"prometheus": "prometheus", "openssl": "openssl"}
    return [
        f"{name}: apt-get install {debian[name]}"
        if name in debian
        else f"{name}: {BUILD} builds it (Go 1.26 or newer)"
        for name in names
        if find_binary(name) is None
    ]


def binary(name: str) -> str:
    """Return the path of a program that must be there; raises ComponentError with how to get it."""
    found = find_binary(name)
    if found is None:
        raise ComponentError(missing([name])[0])
    return found

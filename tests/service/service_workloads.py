"""Functions for workers under test. Workers import them by name, so this folder must be on ``sys.path``."""

import os
import signal
import subprocess
import time
from pathlib import Path

from solver.errors import BackendMissingError, CheckError, InputError, NoAnswerError, Problem

ERRORS = {
    "input": InputError([Problem("$.system", "3", "an object")]),
    "missing": BackendMissingError("install it"),
    "no-answer": NoAnswerError("no point within 1 s"),
    "check": CheckError("a rule is broken"),
}


def nothing(*_: object) -> None:
    pass


def fail_until_exists(flag: str) -> None:
    if not Path(flag).exists():
        raise RuntimeError("not yet")


def raise_error(name: str) -> None:
    raise ERRORS[name]


def meet(folder: str, number: int) -> int:
    """Wait in `folder` until `number` processes are there, and return the process id."""
    (Path(folder) / str(os.getpid())).touch()
    while len(list(Path(folder).iterdir())) < number:
        time.sleep(0.01)
    return os.getpid()


def wait_for(path: str) -> None:
    """Return when there is a file at `path`."""
    while not Path(path).exists():
        time.sleep(0.01)


def touch(path: str) -> None:
    Path(path).touch()


def touch_and_wait(path: str, gate: str) -> None:
    touch(path)
    wait_for(gate)


def start_child(pid_file: str) -> None:
    """Start a process, as Pyomo starts a solver, and wait for it."""
    child = subprocess.Popen(["sleep", "300"])
    Path(pid_file).write_text(str(child.pid))
    child.wait()


def act(body: bytes, *_: object) -> object:
    """Do what the body says instead of optimising."""
    from solver.optimize import Answered

    match body.decode().split():
        case ["die"]:
            os.kill(os.getpid(), signal.SIGKILL)
        case ["sleep", seconds]:
            time.sleep(float(seconds))
        case ["wait", path]:
            wait_for(path)
        case ["divide"]:
            _ = 1 / 0
        case ["raise", name]:
            raise_error(name)
        case ["touch", path]:
            touch(path)
        case ["nonsense"]:
            return "not an Answered"
    text = b'{"pid": %d}' % os.getpid()
    return Answered(text, "highs", "optimal", 0.0, 0, {"solve": 0.01}, 0)

"""The command line as a process: what it prints, where, and with which exit code."""

import io
import json
import socket
import subprocess
import sys
import threading
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

from solver import cli
from solver.example import example_body, example_system

FLEETOPT = str(Path(sys.executable).with_name("fleetopt"))


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@dataclass(frozen=True)
class Ended:
    returncode: int
    stdout: str
    stderr: str


def process(*args: object, stdin: bytes = b"") -> Ended:
    """Run the installed command."""
    ended = subprocess.run([FLEETOPT, *map(str, args)], input=stdin, capture_output=True, timeout=120)
    return Ended(ended.returncode, ended.stdout.decode(), ended.stderr.decode())


def run(*args: object, stdin: bytes = b"") -> Ended:
    """Run the command in this process, which is quicker."""
    out, err = io.StringIO(), io.StringIO()
    given = io.TextIOWrapper(io.BytesIO(stdin))
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(out), redirect_stderr(err):
        patch.setattr(sys, "stdin", given)
        try:
            code = cli.main([str(arg) for arg in args])
        except SystemExit as left:
            code = left.code
    return Ended(code, out.getvalue(), err.getvalue())


@pytest.fixture
def example(tmp_path: Path) -> Path:
    path = tmp_path / "system.json"
    path.write_bytes(example_body())
    return path


def test_optimize_shows_a_table_without_colour_when_it_is_piped(example: Path):
    ended = process("optimize", example)
    assert ended.returncode == 0
    assert ended.stderr == ""
    assert "\x1b" not in ended.stdout
    assert "chat" in ended.stdout
    assert "Optimal, backend highs" in ended.stdout


def test_optimize_reads_standard_input_and_writes_json_alone():
    ended = process("optimize", "-", "--output", "json", stdin=example_body())
    assert ended.returncode == 0
    answer = json.loads(ended.stdout)
    assert set(answer["allocations"]) == {"chat", "batch"}
    assert answer["report"]["explanations"]


def test_a_warning_is_one_line_as_long_as_its_text(tmp_path: Path):
    system = example_system()
    system["system"]["surplus"] = 1
    path = tmp_path / "system.json"
    path.write_text(json.dumps(system))
    assert "\n  $.system.surplus: unknown key, ignored\n" in run("optimize", path).stdout


def test_options_reach_the_solver(example: Path):
    ended = run("optimize", example, "--backend", "greedy", "--output", "json", "--no-explain")
    report = json.loads(ended.stdout)["report"]
    assert report["backend"] == "greedy"
    assert report["explanations"] == {}


@pytest.mark.parametrize(
    ("flag", "document", "environment", "used"),
    [
        (None, None, None, "highs"),
        (None, None, "ortools", "ortools"),
        (None, "pyomo", "ortools", "pyomo"),
        ("greedy", "pyomo", "ortools", "greedy"),
    ],
)
def test_the_flag_wins_over_the_document_over_the_environment(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    flag: str | None,
    document: str | None,
    environment: str | None,
    used: str,
):
    system = example_system()
    if document:
        system["system"].setdefault("optimizerData", {}).setdefault("optimizer", {})["backend"] = document
    if environment:
        monkeypatch.setenv("FLEETOPT_BACKEND", environment)
    path = tmp_path / "system.json"
    path.write_text(json.dumps(system))
    options = ["--backend", flag] if flag else []
    ended = run("optimize", path, "--output", "json", *options)
    assert json.loads(ended.stdout)["report"]["backend"] == used


def test_explain_says_why_not(example: Path):
    assert "Why not otherwise" not in run("optimize", example).stdout
    assert "Why not otherwise" in run("optimize", example, "--explain").stdout


@pytest.mark.parametrize("suffix", ["lp", "mps"])
def test_the_program_can_be_written_to_a_file(example: Path, tmp_path: Path, suffix: str):
    model = tmp_path / f"model.{suffix}"
    ended = run("optimize", example, "--write-model", model)
    assert ended.returncode == 0
    assert "Optimal" in ended.stdout
    assert "chat" in model.read_text()


def test_a_wrong_document_is_exit_2_with_its_path_and_no_traceback():
    system = example_system()
    system["system"]["serverData"]["servers"][1]["class"] = "Fre"
    ended = process("optimize", "-", stdin=json.dumps(system).encode())
    assert ended.returncode == 2
    assert ended.stdout == ""
    assert ended.stderr.startswith("fleetopt: $.system.serverData.servers[1].class: ")
    assert "Traceback" not in ended.stderr


@pytest.mark.parametrize(
    ("args", "phrase"),
    [
        (["optimize", "no-such-file.json"], "no-such-file.json"),
        (["optimize", "-", "--backend", "gurobi"], "one of highs"),
        (["optimize", "-", "--time-limit", "0"], "above 0"),
        (["optimize", "-", "--gap", "small"], "at least 0: small"),
        (["optimize", "-", "--write-model", "model.txt"], ".lp"),
        (["analyze", "-", "--server", "chatt"], "chat"),
        (["request", "example.org", "-"], "the address of a service"),
        (["scenario", "run", "no-such-folder"], "no-such-folder"),
        ([], "COMMAND"),
        (["optimise"], "optimize"),
    ],
)
def test_wrong_options_are_exit_2_with_what_is_expected(args: list[str], phrase: str):
    ended = run(*args, stdin=example_body())
    assert ended.returncode == 2
    assert phrase in ended.stderr
    assert "Traceback" not in ended.stderr


def test_strict_makes_unknown_keys_errors():
    system = example_system()
    system["system"]["serverData"]["servers"][0]["colour"] = "blue"
    body = json.dumps(system).encode()
    assert "colour" in run("optimize", "-", stdin=body).stdout
    assert run("optimize", "-", "--strict", stdin=body).returncode == 2


def test_a_reader_that_stops_reading_is_no_error(sample_file: Path):
    command = f"'{FLEETOPT}' optimize '{sample_file}' --output json --backend highs | head -n 1"
    ended = subprocess.run(
        ["bash", "-o", "pipefail", "-c", command], capture_output=True, text=True, timeout=120
    )
    assert ended.returncode == 0
    assert ended.stdout == "{\n"
    assert ended.stderr == ""


def test_analyze_shows_every_candidate(example: Path):
    ended = run("analyze", example, "--server", "chat", "--rate", "30")
    assert ended.returncode == 0
    assert {"A100", "H100"} <= set(ended.stdout.split())
    candidates = json.loads(run("analyze", example, "--output", "json").stdout)["candidates"]
    assert len(candidates) == 4


def test_backends_are_listed():
    assert "greedy" in run("backends").stdout
    listed = {entry["name"]: entry for entry in json.loads(run("backends", "--output", "json").stdout)}
    assert listed["highs"]["installed"] is True
    assert listed["greedy"]["exact"] is False


def test_request_shows_what_a_service_answers(service: httpx.Client, example: Path):
    ended = run("request", service.base_url, example, "--backend", "highs")
    assert ended.returncode == 0
    here = run("optimize", example).stdout.splitlines()
    assert ended.stdout.splitlines()[:4] == here[:4]
    answer = json.loads(run("request", f"{service.base_url}/optimize", example, "--output", "json").stdout)
    assert answer["report"]["backend"] == "highs"


def test_request_passes_on_what_a_service_refuses(service: httpx.Client, example: Path):
    ended = run("request", service.base_url, example, "--backend", "gurobi")
    assert ended.returncode == 2
    assert "one of highs" in ended.stderr
    lost = run("request", f"{service.base_url}/nowhere", example)
    assert lost.returncode == 1
    assert "Not Found" in lost.stderr


def test_a_service_that_does_not_answer_is_exit_3(example: Path):
    ended = run("request", "http://127.0.0.1:9", example)
    assert ended.returncode == 3
    assert "does not answer" in ended.stderr


def test_request_waits_for_a_service_that_starts(example: Path):
    port = free_port()
    service = subprocess.Popen(
        [FLEETOPT, "serve", "--port", str(port), "--workers", "1"], stderr=subprocess.DEVNULL
    )
    try:
        ended = run("request", "--wait", "60", f"http://127.0.0.1:{port}", example)
    finally:
        service.terminate()
        service.wait(60)
    assert ended.returncode == 0
    assert "Optimal" in ended.stdout


def test_help_shows_examples_and_exit_codes():
    ended = run("--help")
    assert ended.returncode == 0
    assert "fleetopt optimize system.json" in ended.stdout
    assert "exit codes" in ended.stdout
    for command in ("optimize", "analyze", "serve", "request", "scenario", "backends"):
        assert run(command, "--help").returncode == 0


def test_version():
    assert process("--version").stdout.startswith("fleetopt ")


class Terminal(io.StringIO):
    """A stream that says when something was written to it."""

    def __init__(self, is_terminal: bool) -> None:
        super().__init__()
        self.is_terminal = is_terminal
        self.written = threading.Event()

    def isatty(self) -> bool:
        return self.is_terminal

    def flush(self) -> None:
        self.written.set()


def test_a_long_solve_shows_that_it_runs():
    stream = Terminal(is_terminal=False)
    with cli._elapsed(stream, "solving", after_s=0.0):
        assert stream.written.wait(30)
    assert stream.getvalue() == "solving: 0 s\n"


def test_a_terminal_shows_one_line_and_clears_it():
    stream = Terminal(is_terminal=True)
    with cli._elapsed(stream, "solving", after_s=0.0):
        assert stream.written.wait(30)
    assert stream.getvalue().startswith("\rsolving: 0 s")
    assert stream.getvalue().endswith("\r\x1b[K")


def test_a_short_solve_shows_nothing():
    stream = Terminal(is_terminal=True)
    with cli._elapsed(stream, "solving", after_s=60.0):
        pass
    assert stream.getvalue() == ""

"""Replaying a decision record: what differs, what is only a tie, and records that are none."""

import copy
import io
import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from controller_tools import NAMESPACE, law1, signal, snapshot, solved, va
from prometheus_tools import answering, free_port, reply

from controller.actuate import plan
from controller.analyze import analyze
from controller.loop import Now, Outcome, State
from controller.metrics import PassFigures
from controller.record import record_line, recording
from controller.settings import Settings
from controller.stability import Memory
from solver import cli
from solver.replay import read_passes
from solver.replay_compare import Verdict, compare
from solver.schema import Response

# Two accelerators of one price and one law: either is as good.
PROFILES = (law1("A100"), law1("H100"))


@pytest.fixture(scope="module")
def line() -> str:
    """What the controller writes of a pass over one variant: two A100 for 40 requests/min."""
    seen = snapshot(va(), signals=(signal(40.0),), profiles=PROFILES)
    analysis = analyze(seen, Memory(), 0.0)
    assert analysis.system
    response = solved(analysis.system)
    outcome = Outcome(
        state=State(),
        settings=Settings(),
        plan=plan(analysis, response, seen, 0.0),
        figures=PassFigures(ok=True, at_unix_s=0.0, seconds={}, held={}, gap=0.0),
        problems=(),
        system=analysis.system,
        response=response,
    )
    return record_line(outcome, Now(0.0, datetime(2026, 1, 1, tzinfo=UTC)))


def changed(line: str, **report: Any) -> str:
    """The same pass, answered with one A100 more and these figures of the report."""
    document = json.loads(line)
    (allocation,) = document["response"]["allocations"].values()
    allocation["numReplicas"] += 1
    document["response"]["report"] |= report
    return json.dumps(document)


def run(tmp_path: Path, *lines: str, more: tuple[str, ...] = ()) -> int:
    (tmp_path / "record").write_text("".join(f"{line}\n" for line in lines))
    return cli.main(["replay", str(tmp_path / "record"), *more])


def test_nothing_differs(line: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(tmp_path, line, line) == 0
    assert capsys.readouterr().out == "2 passes: 2 same; cost in all 1.60 -> 1.60 $/h\n"


def test_another_cost_differs(line: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    dearer = changed(line, cost=120.0, objective=120.0, bound=120.0, levels=[])
    assert run(tmp_path, line, dearer) == 1
    first, second, summary = capsys.readouterr().out.splitlines()
    assert first.startswith(f"{tmp_path}/record:2  2026-01-01T00:00:00Z  differs: ")
    assert "cost 1.20 -> 0.80 $/h" in first
    assert second == f"    vllm:{NAMESPACE}: 3 A100 (batch 4) -> 2 A100 (batch 4)"
    assert summary == "2 passes: 1 same, 1 differs; cost in all 2.00 -> 1.60 $/h"


def test_another_allocation_of_the_same_objective_is_a_tie(
    line: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(tmp_path, changed(line)) == 0
    first, _, summary = capsys.readouterr().out.splitlines()
    assert "tie: another allocation of the same objective within the gap (0 %)" in first
    assert summary.startswith("1 passes: 1 tie;")


def test_backend_that_proves_nothing_differs(
    line: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(tmp_path, line, more=("--backend", "greedy")) == 1
    assert "differs: gap 0 % -> not proven" in capsys.readouterr().out


def test_service_solves(
    line: str, tmp_path: Path, optimizer_url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(tmp_path, line, more=("--url", optimizer_url)) == 0
    assert run(tmp_path, line, more=("--url", optimizer_url, "--backend", "greedy")) == 1
    capsys.readouterr()
    assert run(tmp_path, line, line, more=("--url", optimizer_url, "--backend", "nobody")) == 1
    out = capsys.readouterr().out
    assert out.count("failed: the service answers 422") == 2
    assert "2 passes: 2 failed" in out


def test_service_that_is_none_or_away(line: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(tmp_path, line, more=("--url", f"http://127.0.0.1:{free_port()}")) == 3
    assert "does not answer" in capsys.readouterr().err
    assert run(tmp_path, line, more=("--url", "service:80")) == 2
    with answering(lambda handler: reply(handler, 200, "hello")) as url:
        assert run(tmp_path, line, more=("--url", url)) == 1
    assert "the service's answer is no allocation" in capsys.readouterr().out


def test_wrong_backend_is_said_once(line: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(tmp_path, line, line, more=("--backend", "nobody")) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("nobody") == 1


def test_passes_without_a_system_or_an_answer_are_skipped(
    line: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    document = json.loads(line)
    nothing = json.dumps(document | {"system": None, "response": None})
    unanswered = json.dumps(document | {"response": None, "problems": ["the optimizer does not answer"]})
    assert run(tmp_path, nothing, unanswered) == 0
    first, second, summary = capsys.readouterr().out.splitlines()
    assert first.endswith("skipped: nothing was asked")
    assert second.endswith("skipped: there was no answer (the optimizer does not answer)")
    assert summary.startswith("2 passes: 2 skipped;")


def test_system_that_is_no_longer_sound_failed(
    line: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    document = json.loads(line)
    document["system"]["serverData"]["servers"][0]["model"] = 7
    assert run(tmp_path, json.dumps(document)) == 1
    assert "failed: $.system.serverData.servers[0].model" in capsys.readouterr().out


def test_rotated_files_are_read_from_the_oldest(line: str, tmp_path: Path) -> None:
    """As the controller's own file rotates; neighbours that only look alike stay out."""
    with recording(str(tmp_path / "record")) as write:
        for minute in range(3):
            write(json.dumps(json.loads(line) | {"at": f"minute {minute}"}))
    for number in (10, 9):
        (tmp_path / f"record.{number}").write_text(json.dumps(json.loads(line) | {"at": f"file {number}"}))
    (tmp_path / "record.bak").write_text("no record")
    found = [(Path(entry.where).name, entry.at) for entry in read_passes(str(tmp_path / "record"))]
    assert found == [
        ("record.10:1", "file 10"),
        ("record.9:1", "file 9"),
        ("record:1", "minute 0"),
        ("record:2", "minute 1"),
        ("record:3", "minute 2"),
    ]


def test_standard_input(
    line: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO(f"{line}\n\n{changed(line)}\n"))
    assert cli.main(["replay", "-"]) == 0
    assert "standard input:3  2026-01-01T00:00:00Z  tie" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("{", "record:2: a JSON document"),
        ("[1]", "record:2: an object with at, system and response (found [1])"),
        ('{"at": ""}', "record:2: an object with at, system and response"),
        ('{"at": "", "system": 5, "response": null}', "record:2: system: an object or null (found 5)"),
        (
            '{"at": "", "system": {}, "response": {"allocations": {}}}',
            "record:2: response.report: Field required",
        ),
    ],
)
def test_line_that_is_no_pass_is_named(
    text: str, reason: str, line: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(tmp_path, line, text) == 2
    assert reason in capsys.readouterr().err


def test_files_that_are_none(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["replay", str(tmp_path / "absent")]) == 2
    assert "absent: a file that can be read" in capsys.readouterr().err
    assert run(tmp_path) == 2
    assert "one pass at least" in capsys.readouterr().err
    (tmp_path / "record").write_bytes(b"\xff\xfe")
    assert cli.main(["replay", str(tmp_path / "record")]) == 2
    assert "a text file" in capsys.readouterr().err


# --- verdicts ---


def response(line: str, cost: float, bound: float | None, unserved: float = 0.0) -> Response:
    """An answer of this cost with this bound; its allocation is named after its cost."""
    document = copy.deepcopy(json.loads(line)["response"])
    (allocation,) = document["allocations"].values()
    allocation |= {"numReplicas": int(cost), "cost": cost}
    gap = None if bound is None else (cost - bound) / cost
    levels = [
        {"name": "Premium", "kind": "unserved share", "value": unserved, "bound": unserved},
        {"name": "cost", "kind": "cost", "value": cost, "bound": bound},
    ]
    document["report"] |= {"cost": cost, "objective": cost, "bound": bound, "gap": gap, "levels": levels}
    return Response.model_validate(document)


@pytest.mark.parametrize(
    ("before", "now", "verdict", "says"),
    [
        ((100.0, 100.0), (100.0, 100.0), Verdict.SAME, ""),
        ((100.0, 99.995), (100.004, 99.995), Verdict.SAME, ""),
        # Each may be 0.8 above the optimum, and they are 0.6 apart.
        ((1000.6, 999.8), (1001.2, 1000.4), Verdict.TIE, "cost 10.01 -> 10.01 $/h"),
        ((1000.0, 999.95), (1001.0, 1000.95), Verdict.DIFFERS, "cost 1000 -> 1001"),
        ((100.0, None), (100.0, 100.0), Verdict.DIFFERS, "gap not proven -> 0 %"),
        ((100.0, None), (101.0, None), Verdict.DIFFERS, "cost 100 -> 101"),
        ((100.0, 100.0), (100.0, 90.0), Verdict.DIFFERS, "gap 0 % -> 10 %"),
        ((100.0, 100.0, 0.25), (100.0, 100.0, 0.5), Verdict.DIFFERS, "unserved share of Premium 0.25 -> 0.5"),
    ],
)
def test_verdicts(before: Any, now: Any, verdict: Verdict, says: str, line: str) -> None:
    found = compare(response(line, *before), response(line, *now))
    assert found.verdict is verdict
    assert says in found.summary


def test_parts_count_whatever_their_order(line: str) -> None:
    def parted(*parts: tuple[str, int]) -> Response:
        answer = response(line, 100.0, 100.0)
        ((name, allocation),) = answer.allocations.items()
        document = allocation.model_dump() | {
            "parts": [{"accelerator": a, "numReplicas": n, "maxBatch": 4} for a, n in parts]
        }
        return Response.model_validate(answer.model_dump() | {"allocations": {name: document}})

    assert compare(parted(("A100", 1), ("H100", 2)), parted(("H100", 2), ("A100", 1))).verdict is Verdict.SAME
    other = compare(parted(("A100", 1), ("H100", 2)), parted(("A100", 2), ("H100", 1)))
    assert other.verdict is Verdict.TIE
    assert other.details == (
        f"vllm:{NAMESPACE}: 1 A100 (batch 4) + 2 H100 (batch 4) -> 1 H100 (batch 4) + 2 A100 (batch 4)",
    )


def test_server_in_one_answer_only(line: str) -> None:
    answer = response(line, 100.0, 100.0)
    empty = Response.model_validate(answer.model_dump() | {"allocations": {}})
    assert compare(answer, empty).details == (f"vllm:{NAMESPACE}: 100 A100 (batch 4) -> nothing said",)

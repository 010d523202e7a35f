"""Speed and quality of the exact method on fleets of up to 10,000 servers.

The fleet is the sample `law3-large` (27 servers x 21 accelerators on 9 GPU types) repeated, each server
with an arrival rate drawn from a log-normal distribution (median the sample's 120 requests/min, sigma 1) and
token counts drawn from 0.5 to 1.5 times the sample's; the seed is fixed. Its classes have three priorities.
The inventory is the sample's, times the least factor with which one type per server can serve everything
(from the relaxation), times 1.25, 1.05 or 0.7.

Timed is everything from JSON bytes to JSON bytes, in process, with the method that is picked by itself;
"warm" has seen the same candidates before. Each row is measured in a process of its own, on two cores.
Quality of greedy and of plain HiGHS on the compact program is given as the cost relative to the exact
method's bound, and as servers left unserved.

    python benchmarks/fleet.py [--servers 27 100 1000 10000] [--repeat 5] [--write] [--resume]

With ``--write`` the table in RESULTS.md is written anew after every row; rows that were not asked for stay,
as long as machine, versions and repeats are the same. ``--resume`` leaves out the rows that are there.
"""

from __future__ import annotations

import argparse
import copy
import itertools
import json
import multiprocessing
import os
import platform
import re
import resource
import statistics
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import sizing
from scipy.sparse import csr_matrix, hstack

from solver import backends, schema
from solver.backends.greedy import greedy
from solver.check import score
from solver.convert import to_problem
from solver.curves import Curves
from solver.example import example_body
from solver.formulate import formulate
from solver.milp import SolveOptions
from solver.optimize import RequestOptions, optimize_json
from solver.problem import NO_LIMIT, Inventory
from solver.reduce import dominated, keep
from solver.sizing import size_fleet
from solver.solve import solve

if TYPE_CHECKING:
    from collections.abc import Callable

    from solver.problem import AllocationProblem

SAMPLE = Path(__file__).parents[1] / "tests/data/inferno_sample/law3-large.system.json"
RESULTS = Path(__file__).with_name("RESULTS.md")
ACCELERATORS = 21
CORES = 2
TIME_LIMIT_S = 10.0
SERVERS = (27, 100, 1000, 10_000)
FACTORS = (1.25, 1.05, 0.7)
TYPES = ("one", "mix")
STAGES = ("parse", "size", "solve", "explain", "write")

# What we want, by servers: seconds with one type and with a mix, and the relative gap.
GOAL_S = {
    27: {"one": 0.025, "mix": 0.04},
    100: {"one": 0.2, "mix": 0.4},
    1000: {"one": 0.6, "mix": 1.0},
    10_000: {"one": 6.0, "mix": 10.0},
}
GOAL_GAP = {27: 1e-3, 100: 1e-3, 1000: 1e-4, 10_000: 1e-4}

# Seconds to size 21,000 candidates of one law that were not seen before.
GOAL_SIZING_S = 0.15

KEY = ("servers", "types", "inventory")
HEADER = (
    *KEY,
    "goal s",
    "cold s",
    "warm s",
    *(f"{stage} s" for stage in STAGES),
    "goal gap",
    "gap",
    "proven",
    "unserved",
    "peak MB",
    "greedy cost",
    "greedy unserved",
    "HiGHS cost",
    "HiGHS unserved",
    "load",
)
Row = dict[str, str]

TITLE = "# Fleets: speed and quality"
NOTES = f"""Seconds are wall clock, from JSON bytes to JSON bytes in a warm process of its own on {CORES}
cores; "cold" has sized none of the candidates before, "warm" all of them, and the stages are those of the
cold runs. `gap` is that of the cost level; `proven` says whether every level of the objective met the goal's
gap within {TIME_LIMIT_S:g} s. `peak MB` is the most memory that the process held, without the comparisons.
Costs of greedy and of HiGHS on the compact program, with as much time for the solve as the exact method took,
are relative to the exact method's lower bound; in brackets where they leave another number of servers
unserved, for then the costs do not compare. `load` is the machine's load average before the row: above 1
others ran beside it."""


def fleet(servers: int, *, mix: bool, seed: int = 0) -> dict[str, Any]:
    """Return the system JSON of a fleet with the sample's inventory."""
    rng = np.random.default_rng(seed)
    system = json.loads(SAMPLE.read_bytes())["system"]
    sample = system["serverData"]["servers"]
    repeated = []
    for index in range(servers):
        server = copy.deepcopy(sample[index % len(sample)])
        server["name"] = f"{server['name']}-{index // len(sample):03d}"
        load = server["currentAlloc"]["load"]
        load["arrivalRate"] = round(float(load["arrivalRate"] * np.exp(rng.normal())), 1)
        for key in ("AvgInTokens", "AvgOutTokens"):
            load[key] = int(load[key] * rng.uniform(0.5, 1.5))
        repeated.append(server)
    system["serverData"]["servers"] = repeated
    system["optimizerData"]["optimizer"] = {
        "heterogeneous": mix,
        "unlimited": False,
        "saturationPolicy": "None",
    }
    return {"system": system}


def with_inventory(document: dict[str, Any], factor: float) -> bytes:
    """Return the fleet as JSON, with so many times its GPUs."""
    document = copy.deepcopy(document)
    for count in document["system"]["capacityData"]["count"]:
        count["count"] = int(np.ceil(count["count"] * factor))
    return json.dumps(document).encode()


def needed(problem: AllocationProblem) -> float:
    """Return the least factor on the inventory with which one type per server serves everything."""
    stock = problem.inventory.gpus.astype(float)
    plenty = np.full(len(stock), NO_LIMIT - 1)
    one_type = replace(
        problem,
        inventory=Inventory(plenty, (None,) * len(stock)),
        policy=replace(problem.policy, max_types=1),
    )
    formulation = formulate(keep(one_type, np.flatnonzero(~dominated(one_type))), serve_all=True)
    milp = formulation.milp
    rows = formulation.inventory_row
    factor = np.zeros(milp.rows)
    factor[rows] = -stock
    upper = milp.row_upper.copy()
    upper[rows] = 0.0
    matrix = csr_matrix((milp.value, milp.column, milp.row_start), shape=(milp.rows, milp.columns))
    matrix = hstack([matrix, csr_matrix(factor[:, None])], format="csr")
    with_factor = replace(
        milp,
        objective=np.r_[np.zeros(milp.columns), 1.0],
        row_start=matrix.indptr.astype(np.int64),
        column=matrix.indices.astype(np.int64),
        value=matrix.data,
        row_upper=upper,
        column_lower=np.r_[milp.column_lower, 0.0],
        column_upper=np.r_[milp.column_upper, np.inf],
        integer=np.r_[milp.integer, False],
    )
    return backends.get("highs").solve(with_factor, SolveOptions(relax=True)).objective


def to_problem_of(body: bytes) -> AllocationProblem:
    parsed = schema.parse_system(body)
    return to_problem(parsed.system, size_fleet(parsed.system))


def needed_by(body: bytes) -> float:
    """`needed` of a system JSON."""
    return needed(to_problem_of(body))


def measure(body: bytes, gap: float, repeat: int) -> Row:
    """Measure one fleet, in a process that has done nothing else."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:CORES])
    load = os.getloadavg()[0]
    options = RequestOptions(gap=gap, time_limit_s=TIME_LIMIT_S)
    optimize_json(example_body(), options)
    cold, warm = [], []
    for run in range(repeat):
        curves = Curves()
        cold.append(optimize_json(body, options, curves=curves))
        warm.append(optimize_json(body, options, curves=curves))
        _progress(f"  run {run + 1}: cold {cold[-1].seconds['total']:.3f} s")
    peak_mb = _peak_mb()
    seconds = {stage: statistics.median(run.seconds[stage] for run in cold) for stage in (*STAGES, "total")}
    report = json.loads(cold[-1].body)["report"]
    short = len(report["unserved"])
    found: Row = {
        "cold s": f"{seconds['total']:.3f}",
        "warm s": f"{statistics.median(run.seconds['total'] for run in warm):.3f}",
        **{f"{stage} s": f"{seconds[stage]:.3f}" for stage in STAGES},
        "gap": "-" if report["gap"] is None else f"{100 * report['gap']:.4f} %",
        "proven": "yes" if report["termination"] == "optimal" else report["termination"],
        "unserved": str(short),
        "peak MB": f"{peak_mb:.0f}",
        "load": f"{load:.1f}",
    }

    problem = to_problem_of(body)
    limit = SolveOptions(relative_gap=gap, time_limit_s=max(seconds["solve"], 0.05))
    for name, plan in (
        ("greedy", greedy(problem)),
        ("HiGHS", solve(problem, backends.get("highs"), limit).plan),
    ):
        worth = score(problem, plan)
        unserved = int((worth.served_share < 1).sum())
        relative = worth.levels[-1] / report["bound"] if report["bound"] else float("nan")
        found[f"{name} cost"] = f"{relative:.3f}" if unserved == short else f"({relative:.3f})"
        found[f"{name} unserved"] = str(unserved)
    return found


def _peak_mb() -> float:
    """Most memory that this process held so far; getrusage would count that of the one that started it."""
    try:
        status = Path("/proc/self/status").read_text()
    except OSError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return next(int(entry.split()[1]) for entry in status.splitlines() if entry.startswith("VmHWM:")) / 1024


def _progress(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def in_own_process(function: Callable[..., Any], *args: object) -> Any:
    """Call in a fresh interpreter, which ends with the call."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(function, *args).result()


def about() -> str:
    """Machine and versions."""
    packages = ", ".join(f"{name} {version(name)}" for name in ("numpy", "scipy", "pydantic", "highspy"))
    return (
        f"{sizing.processor()}, {os.cpu_count()} cores, {platform.system()} {platform.machine()}; "
        f"Python {platform.python_version()}, {packages}"
    )


def line(cells: dict[str, str]) -> str:
    return "| " + " | ".join(cells.get(name, "") for name in HEADER) + " |"


def key(servers: int, types: str, factor: float) -> Row:
    return dict(zip(KEY, (f"{servers} x {ACCELERATORS}", types, f"x {factor}"), strict=True))


def written(machine: str, repeat: int) -> list[Row]:
    """Rows of RESULTS.md, none when it is of another machine or other repeats, or has other columns."""
    text = RESULTS.read_text() if RESULTS.exists() else ""
    same = (f"{machine}.", f"median of {repeat}.", line({name: name for name in HEADER}))
    if not all(part in text for part in same):
        return []
    lines = [part.strip("| ").split(" | ") for part in text.splitlines() if re.match(r"\| \d", part)]
    return [dict(zip(HEADER, cells, strict=True)) for cells in lines]


def write(rows: list[Row], machine: str, repeat: int, sized_s: dict[str, float]) -> None:
    """Write RESULTS.md."""
    order = {
        tuple(key(*case).values()): i for i, case in enumerate(itertools.product(SERVERS, TYPES, FACTORS))
    }
    rows = sorted(rows, key=lambda row: order.get(tuple(row[name] for name in KEY), len(order)))
    table = [line({name: name for name in HEADER}), "|" + "---|" * len(HEADER), *map(line, rows)]
    command = f"`make bench`, which runs `python benchmarks/fleet.py --write --repeat {repeat}`"
    date = time.strftime("%Y-%m-%d")
    laws = ", ".join(f"{law} {seconds:.3f} s" for law, seconds in sized_s.items())
    cold = f"Sizing {sizing.COUNT:,} unseen candidates on one core: {laws} (goal {GOAL_SIZING_S:g} s)."
    parts = [TITLE, f"{command}; {date}; median of {repeat}.", f"{machine}.", "\n".join(table), cold, NOTES]
    RESULTS.write_text("\n\n".join(parts) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--servers", type=int, nargs="+", default=list(SERVERS))
    parser.add_argument("--types", choices=TYPES, nargs="+", default=list(TYPES))
    parser.add_argument("--factors", type=float, nargs="+", default=list(FACTORS))
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--write", action="store_true", help=f"write {RESULTS.name}")
    parser.add_argument("--resume", action="store_true", help=f"leave out rows that {RESULTS.name} has")
    arguments = parser.parse_args()

    machine = about()
    rows = written(machine, arguments.repeat)
    sized_s = in_own_process(sizing.seconds_by_law) if arguments.write else {}
    print(machine)
    print(line({name: name for name in HEADER}))
    print("|" + "---|" * len(HEADER), flush=True)
    for servers in arguments.servers:
        plain = {types: fleet(servers, mix=types == "mix") for types in arguments.types}
        need = None
        for types, factor in itertools.product(arguments.types, arguments.factors):
            here = key(servers, types, factor)
            there = next((row for row in rows if here.items() <= row.items()), None)
            if there is not None and arguments.resume:
                print(line(there), flush=True)
                continue
            if need is None:
                _progress(f"{servers} servers: GPUs that serve everything")
                need = in_own_process(needed_by, json.dumps(fleet(servers, mix=False)).encode())
            _progress(" ".join(here.values()))
            gap = GOAL_GAP.get(servers, 1e-4)
            body = with_inventory(plain[types], need * factor)
            goals = {
                "goal s": f"{GOAL_S[servers][types]:g}" if servers in GOAL_S else "",
                "goal gap": f"{100 * gap:g} %",
            }
            row = here | goals | in_own_process(measure, body, gap, arguments.repeat)
            print(line(row), flush=True)
            rows = [other for other in rows if other is not there] + [row]
            if arguments.write:
                write(rows, machine, arguments.repeat, sized_s)


if __name__ == "__main__":
    main()

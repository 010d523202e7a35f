"""Speed and quality of the exact method on fleets of up to 10,000 servers.

The fleet is the sample `law3-large` (27 servers x 21 accelerators on 9 GPU types) repeated, each server
with an arrival rate drawn from a log-normal distribution (median the sample's 120 requests/min, sigma 1) and
token counts drawn from 0.5 to 1.5 times the sample's; the seed is fixed. The inventory is the sample's, times
the least factor with which one type per server can serve everything (from the relaxation), times 1.25, 1.05
or 0.7.

Timed is everything from JSON bytes to JSON bytes, in process, with the method that is picked by itself;
"warm" has seen the same candidates before. Quality of greedy and of plain HiGHS on the compact program is
given as the cost relative to the exact method's bound, and as servers left unserved.

    python benchmarks/fleet.py [--servers 27 100 1000 10000] [--repeat 5] [--write]
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import platform
import resource
import statistics
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy.sparse import csr_matrix, hstack

from solver import backends, schema
from solver.backends.greedy import greedy
from solver.check import score
from solver.convert import to_problem
from solver.curves import Curves
from solver.formulate import formulate
from solver.milp import SolveOptions
from solver.optimize import RequestOptions, optimize_json
from solver.problem import NO_LIMIT, Inventory
from solver.reduce import dominated, keep
from solver.sizing import size_fleet
from solver.solve import solve

if TYPE_CHECKING:
    from solver.problem import AllocationProblem

SAMPLE = Path(__file__).parents[1] / "tests/data/inferno_sample/law3-large.system.json"
RESULTS = Path(__file__).with_name("RESULTS.md")
TIME_LIMIT_S = 10.0
FACTORS = (1.25, 1.05, 0.7)
STAGES = ("parse", "size", "solve", "explain", "write")
HEADER = (
    "servers",
    "types",
    "inventory",
    "cold s",
    "warm s",
    *(f"{stage} s" for stage in STAGES),
    "gap",
    "proven",
    "unserved",
    "greedy cost",
    "greedy unserved",
    "HiGHS cost",
    "HiGHS unserved",
)


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


def to_problem_of(document: dict[str, Any]) -> AllocationProblem:
    parsed = schema.parse_system(json.dumps(document).encode(), strict=False)
    return to_problem(parsed.system, size_fleet(parsed.system))


def row(servers: int, mix: bool, factor: float, need: float, repeat: int) -> list[str]:
    """Measure one fleet."""
    document = fleet(servers, mix=mix)
    for count in document["system"]["capacityData"]["count"]:
        count["count"] = int(np.ceil(count["count"] * need * factor))
    body = json.dumps(document).encode()
    gap = 1e-3 if servers < 1000 else 1e-4
    options = RequestOptions(gap=gap, time_limit_s=TIME_LIMIT_S)
    runs = [optimize_json(body, options) for _ in range(repeat)]
    seconds = {stage: statistics.median(run.seconds[stage] for run in runs) for stage in (*STAGES, "total")}
    curves = Curves()
    optimize_json(body, options, curves=curves)
    warm = optimize_json(body, options, curves=curves).seconds["total"]
    report = json.loads(runs[0].body)["report"]

    problem = to_problem_of(document)
    limit = SolveOptions(relative_gap=gap, time_limit_s=max(seconds["solve"], 0.05))
    found = []
    for plan in (greedy(problem), solve(problem, backends.get("highs"), limit).plan):
        worth = score(problem, plan)
        relative = worth.levels[-1] / report["bound"] if report["bound"] else float("nan")
        found += [f"{relative:.3f}", f"{int((worth.served_share < 1).sum())}"]
    return [
        f"{servers} x 21",
        "mix" if mix else "one",
        f"x {factor}",
        f"{seconds['total']:.3f}",
        f"{warm:.3f}",
        *(f"{seconds[stage]:.3f}" for stage in STAGES),
        "-" if report["gap"] is None else f"{report['gap']:.1e}",
        "yes" if report["termination"] == "optimal" else report["termination"],
        str(len(report["unserved"])),
        *found,
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--servers", type=int, nargs="+", default=[27, 100, 1000, 10_000])
    parser.add_argument("--factors", type=float, nargs="+", default=list(FACTORS))
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--write", action="store_true", help=f"write {RESULTS.name}")
    arguments = parser.parse_args()

    lines = ["| " + " | ".join(HEADER) + " |", "|" + "---|" * len(HEADER)]
    print("\n".join(lines))
    for servers in arguments.servers:
        need = needed(to_problem_of(fleet(servers, mix=False)))
        for mix in (False, True):
            for factor in arguments.factors:
                cells = row(servers, mix, factor, need, arguments.repeat)
                lines.append("| " + " | ".join(cells) + " |")
                print(lines[-1], flush=True)
    peak_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    about = (
        f"Python {platform.python_version()}, NumPy {version('numpy')}, highspy {version('highspy')}, "
        f"{os.cpu_count()} cores ({platform.machine()}), load {os.getloadavg()[0]:.1f} at the end, "
        f"peak memory {peak_mb} MB, median of {arguments.repeat}."
    )
    print(about)
    if arguments.write:
        command = "python benchmarks/fleet.py --write --repeat " + str(arguments.repeat)
        RESULTS.write_text(f"{TITLE}\n`{command}`\n\n{about}\n\n" + "\n".join(lines) + f"\n\n{NOTES}\n")


TITLE = "# Fleets: speed and quality\n"
NOTES = """Seconds are wall clock, from JSON bytes to JSON bytes, one thread; the stages are those of the cold
run. `gap` is that of the cost level; `proven` says whether every level of the objective met the requested gap
(0.1 % below 1000 servers, 0.01 % from there on) within 10 s. Costs of greedy and of HiGHS on the compact
program, with as much time for the solve as the exact method took, are relative to the exact method's lower
bound; where they leave more servers unserved the costs do not compare."""


if __name__ == "__main__":
    main()

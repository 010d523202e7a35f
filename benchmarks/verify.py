"""What it costs to verify an answer by simulation: seconds, processor time, rounds and the price of it.

    python benchmarks/verify.py [--repeat 3]

Solves scenarios/azure-chat-peak with both queue models, plain and verified, each time without anything
remembered, and prints the medians as a Markdown table.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import time
from pathlib import Path

from solver.optimize import RequestOptions, optimize_json

SYSTEM = Path(__file__).parents[1] / "scenarios" / "azure-chat-peak" / "system.json"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeat", type=int, default=3)
    repeat = parser.parse_args().repeat
    system = json.loads(SYSTEM.read_text())
    optimizer = system["system"]["optimizerData"]["optimizer"]
    print(f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}, median of {repeat}\n")
    print("| queue model | plain s | verified s | processor s | rounds | cuts | cents/h | verified cents/h |")
    print("|---|---|---|---|---|---|---|---|")
    for model in ("reference", "moments"):
        optimizer["queueModel"] = model
        body = json.dumps(system).encode()
        plain = [solved(body, None) for _ in range(repeat)]
        verified = [solved(body, "simulation") for _ in range(repeat)]
        report, found = verified[0][2], verified[0][2]["verification"]
        assert all(option["verdict"] == "met" for option in found["options"])
        seconds = [statistics.median(row[i] for row in rows) for rows in (plain, verified) for i in (0, 1)]
        print(
            f"| {model} | {seconds[0]:.2f} | {seconds[2]:.2f} | {seconds[3]:.2f} | {found['rounds']} "
            f"| {len(found['cuts'])} | {plain[0][2]['cost']:.2f} | {report['cost']:.2f} |"
        )


def solved(body: bytes, verify: str | None) -> tuple[float, float, dict]:
    """Wall-clock and processor seconds of one answer, and its report."""
    start, before = time.perf_counter(), processor_s()
    answered = optimize_json(body, RequestOptions(verify=verify))
    return time.perf_counter() - start, processor_s() - before, json.loads(answered.body)["report"]


def processor_s() -> float:
    """Processor seconds of this process and of its children that ended."""
    return sum(sum(resource.getrusage(who)[:2]) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))


if __name__ == "__main__":
    main()

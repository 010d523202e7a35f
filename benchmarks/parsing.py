"""Measure how long a large system takes to read: 10,000 servers with the profiles of the public large sample.

Run as ``python benchmarks/parsing.py [servers]``. Two documents: keys spelled as documented, and with the
capital initials of the public files, which must be renamed.
"""

from __future__ import annotations

import json
import platform
import random
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import pydantic

from solver.schema import parse_system

SAMPLE = Path(__file__).parents[1] / "tests" / "data" / "inferno_sample" / "law3-large.system.json"
REPEATS = 5


def fleet(servers: int, *, capitals: bool) -> bytes:
    """Return the sample as JSON text with this many servers, all different, and full current allocations."""
    rng = random.Random(0)
    document: dict[str, Any] = json.loads(SAMPLE.read_bytes())
    given = document["system"]["serverData"]["servers"]
    document["system"]["serverData"]["servers"] = [
        server(given[index % len(given)], index, rng, capitals=capitals) for index in range(servers)
    ]
    return json.dumps(document).encode()


def server(like: dict[str, Any], index: int, rng: random.Random, *, capitals: bool) -> dict[str, Any]:
    """Return a server of the same class and model with a load of its own."""
    load = {
        "arrivalRate": round(rng.uniform(10, 1000), 3),
        "avgInTokens": rng.randint(10, 4000),
        "avgOutTokens": rng.randint(10, 1000),
    }
    if capitals:
        load = {key[0].upper() + key[1:]: value for key, value in load.items()}
    alloc = {
        "accelerator": "A100",
        "numReplicas": 3,
        "maxBatch": 16,
        "cost": 120.5,
        "itlAverage": 23.1,
        "ttftAverage": 123.4,
        "load": load,
    }
    return like | {
        "name": f"{like['name']}-{index}",
        "keepAccelerator": False,
        "minNumReplicas": 1,
        "currentAlloc": alloc,
        "desiredAlloc": alloc | {"accelerator": ""},
    }


def main() -> None:
    servers = int(sys.argv[1]) if len(sys.argv) > 1 else 10_000
    print(f"Python {platform.python_version()}, pydantic {pydantic.VERSION}, {platform.machine()}")
    for label, capitals in (("documented spelling", False), ("capital initials", True)):
        body = fleet(servers, capitals=capitals)
        seconds = []
        for _ in range(REPEATS):
            start = time.perf_counter()
            parse_system(body)
            seconds.append(time.perf_counter() - start)
        median = statistics.median(seconds)
        print(f"{label:20} {servers} servers, {len(body) / 1e6:.1f} MB: {median:.3f} s (median of {REPEATS})")


if __name__ == "__main__":
    main()

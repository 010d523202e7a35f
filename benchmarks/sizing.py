"""How long it takes to size 21,000 candidates on one core, law by law.

The candidates are the pairs of servers and accelerators of the public large sample system (27 servers, 21
accelerators), each repeated with random request lengths from a fixed seed, so that no two are equal. Ten
requests may wait for each place in the batch. Run it from the repository: ``python benchmarks/sizing.py``.
"""

from __future__ import annotations

import json
import os
import platform
import statistics
import time
from pathlib import Path
from typing import Any

import numpy as np
import scipy

from models.capacity import Limit, size
from models.laws import Candidates, Law

SAMPLES = Path(__file__).parent.parent / "tests" / "data" / "inferno_sample"
COUNT = 21_000
SEED = 1
REPEATS = 5
QUEUE_PER_BATCH = 10
OUT_TOKENS = (64, 1024)
IN_TOKENS = (64, 2048)


def lower_keys(value: Any) -> Any:
    if isinstance(value, dict):
        return {key.lower(): lower_keys(item) for key, item in value.items()}
    return [lower_keys(item) for item in value] if isinstance(value, list) else value


def parameters_ms(profile: dict[str, Any], law: Law) -> tuple[float, float, float, float]:
    if law is Law.DECODE_LINEAR:
        return profile["alpha"], profile["beta"], 0.0, 0.0
    if law is Law.PREFILL_DECODE:
        decode, prefill = profile["decodeparms"], profile["prefillparms"]
        return decode["alpha"], decode["beta"], prefill["gamma"], prefill["delta"]
    iteration = profile["perfparms"]
    return iteration["alpha"], iteration["beta"], iteration["gamma"], 0.0


def build(law: Law) -> Candidates:
    document = lower_keys(json.loads((SAMPLES / f"law{law:d}-large.system.json").read_text()))
    system = document.get("system", document)
    targets = {
        (service_class["name"], target["model"]): target
        for service_class in system["serviceclassdata"]["serviceclasses"]
        for target in service_class["modeltargets"]
    }
    pairs = [
        (profile, targets[server["class"], server["model"]])
        for server in system["serverdata"]["servers"]
        for profile in system["modeldata"]["models"]
        if profile["name"] == server["model"]
    ]
    rng = np.random.default_rng(SEED)
    pair = np.arange(COUNT) % len(pairs)
    out_tokens = np.exp(rng.uniform(*np.log(OUT_TOKENS), COUNT))
    in_tokens = np.exp(rng.uniform(*np.log(IN_TOKENS), COUNT))
    parameters_s = np.array([parameters_ms(profile, law) for profile, _ in pairs])[pair].T / 1000
    batch_tokens = np.array([profile["maxbatchsize"] * profile["attokens"] for profile, _ in pairs])[pair]
    max_batch = np.maximum(batch_tokens // out_tokens, 1).astype(np.int64)
    target_ms = np.array(
        [
            (target.get("slo-itl", 0), target.get("slo-ttw", 0) or target.get("slo-ttft", 0))
            for _, target in pairs
        ]
    )
    throughput = np.array([target.get("slo-tps", 0) > 0 for _, target in pairs])
    return Candidates(
        law=np.full(COUNT, law, dtype=np.int64),
        alpha_s=parameters_s[0],
        beta_s=parameters_s[1],
        gamma_s=parameters_s[2],
        delta_s=parameters_s[3],
        beta_prefill_s=parameters_s[1],
        prefill_floor_s=np.zeros(COUNT),
        epsilon_s=np.zeros(COUNT),
        expert_fraction=np.zeros(COUNT),
        in_tokens=np.zeros(COUNT) if law is Law.DECODE_LINEAR else in_tokens,
        out_tokens=out_tokens,
        max_batch=max_batch,
        max_queue=QUEUE_PER_BATCH * max_batch,
        target_itl_s=target_ms[pair, 0] / 1000,
        target_ttft_s=target_ms[pair, 1] / 1000,
        throughput_target=throughput[pair],
        percentile=np.full(COUNT, np.nan),
        wait_factor=np.ones(COUNT),
    )


def processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), "")


def on_one_core() -> None:
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})


def seconds_by_law() -> dict[str, float]:
    """Median wall clock seconds to size the candidates of each law on one core."""
    on_one_core()
    found = {}
    for law in Law:
        candidates = build(law)
        size(candidates)
        wall_s = []
        for _ in range(REPEATS):
            start = time.perf_counter()
            size(candidates)
            wall_s.append(time.perf_counter() - start)
        found[f"law {law:d}"] = statistics.median(wall_s)
    return found


def main() -> None:
    on_one_core()
    print(f"{processor()}, {platform.machine()}, one core; {platform.system()} {platform.release()}")
    print(f"Python {platform.python_version()}, NumPy {np.__version__}, SciPy {scipy.__version__}")
    print(f"{COUNT} candidates, median of {REPEATS}\n")
    print("law             mean N  max N  feasible  ITL-bound  TTFT-bound    time s   CPU s")
    for law in Law:
        candidates = build(law)
        size(candidates)
        wall_s, cpu_s = [], []
        for _ in range(REPEATS):
            start = time.perf_counter(), time.process_time()
            sizing = size(candidates)
            wall_s.append(time.perf_counter() - start[0])
            cpu_s.append(time.process_time() - start[1])
        feasible = sizing.capacity_rps > 0
        bound = [int((feasible & (sizing.limit == limit)).sum()) for limit in (Limit.ITL, Limit.TTFT)]
        print(
            f"{law.name.lower():15} {candidates.max_batch.mean():6.0f} {candidates.max_batch.max():6}"
            f" {feasible.sum():9} {bound[0]:10} {bound[1]:11}"
            f" {statistics.median(wall_s):9.3f} {statistics.median(cpu_s):7.3f}"
        )


if __name__ == "__main__":
    main()

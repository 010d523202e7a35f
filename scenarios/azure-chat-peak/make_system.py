"""Write system.json from the measurements in ../data; README.md says where every number comes from.

Usage: ``python make_system.py``
"""

from __future__ import annotations

import csv
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
DATA = HERE.parent / "data"

# The traces are samples of a service; the fleet serves this many times their peak minute.
FLEET_SCALE = 20


@dataclass(frozen=True)
class Gpu:
    """A card: its name in the measurements, and the instance that it is rented in."""

    system: str
    instance_type: str
    cards: int


GPUS = {
    "H100": Gpu("h100_sxm", "p5.48xlarge", 96),
    "H200": Gpu("h200_sxm", "p5en.48xlarge", 64),
    "B200": Gpu("b200_sxm", "p6-b200.48xlarge", 32),
}

# Cards of a replica.
UNITS = (1, 2, 4, 8)

# Share of a card's memory for weights and KV cache: the default of vLLM's --gpu-memory-utilization.
MEMORY_SHARE = 0.9
BYTES_PER_GIB = 2**30


@dataclass(frozen=True)
class Targets:
    ttft_ms: int
    itl_ms: int


@dataclass(frozen=True)
class Model:
    """A model: name in the fits, precisions in order of preference, memory, targets."""

    path: str
    precisions: tuple[str, ...]
    weight_bytes: float
    kv_bytes_per_token: int
    interactive: Targets
    server: Targets


# Limits of the MLPerf benchmark of the model, or of Llama-2-70B where it has none: Interactive, and Server.
LLAMA_2_70B = (Targets(450, 40), Targets(2000, 200))
LLAMA_3_1_8B = (Targets(500, 30), Targets(2000, 100))
GPT_OSS_120B = (Targets(2000, 20), Targets(3000, 80))
DEEPSEEK_R1 = (Targets(1500, 15), Targets(2000, 80))

MODELS = {
    "Llama-3.1-8B": Model("meta-llama/Llama-3.1-8B-Instruct", ("na", "fp8"), 16.1e9, 131_072, *LLAMA_3_1_8B),
    "Llama-3.1-70B": Model("meta-llama/Llama-3.1-70B", ("fp8",), 70.6e9, 327_680, *LLAMA_2_70B),
    "Qwen3-32B": Model("Qwen/Qwen3-32B", ("fp8", "na"), 32.8e9, 262_144, *LLAMA_2_70B),
    "gpt-oss-120b": Model("openai/gpt-oss-120b", ("fp4",), 65.3e9, 73_728, *GPT_OSS_120B),
    "DeepSeek-R1": Model("deepseek-ai/DeepSeek-R1", ("fp8",), 671e9, 70_272, *DEEPSEEK_R1),
}

# Batch work has hours; the TTFT is what Mooncake allows, the ITL that of the most patient benchmark above.
BATCH = Targets(30_000, 200)

PRIORITY = {"Premium": 1, "Standard": 2, "Batch": 3}

TRACES = {
    "chat": "azure2023_conv_per_minute.csv",
    "code": "azure2023_code_per_minute.csv",
    "long": "mooncake_conversation_per_minute.csv",
}

# Which share of a trace goes to which model in which class.
SPLIT = (
    ("chat", "Llama-3.1-8B", "Premium", 0.20),
    ("chat", "Llama-3.1-8B", "Standard", 0.20),
    ("chat", "Llama-3.1-70B", "Premium", 0.15),
    ("chat", "Llama-3.1-70B", "Standard", 0.15),
    ("chat", "gpt-oss-120b", "Standard", 0.20),
    ("chat", "DeepSeek-R1", "Premium", 0.05),
    ("chat", "DeepSeek-R1", "Standard", 0.05),
    ("code", "Qwen3-32B", "Premium", 0.30),
    ("code", "Qwen3-32B", "Standard", 0.30),
    ("code", "gpt-oss-120b", "Premium", 0.40),
    ("long", "Llama-3.1-70B", "Standard", 0.30),
    ("long", "Llama-3.1-70B", "Batch", 0.30),
    ("long", "gpt-oss-120b", "Standard", 0.20),
    ("long", "gpt-oss-120b", "Batch", 0.20),
)


def table(name: str) -> list[dict[str, str]]:
    with (DATA / name).open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


@dataclass(frozen=True)
class Shape:
    """The peak minute of a trace."""

    requests: int
    in_tokens: int
    out_tokens: int


def peak(trace: str) -> Shape:
    """The minute with most requests; of equal ones that with most tokens."""
    rows = [row for row in table(TRACES[trace]) if int(row["requests"])]
    row = max(rows, key=lambda row: (int(row["requests"]), int(row["in_sum"]) + int(row["out_sum"])))
    return Shape(int(row["requests"]), round(float(row["in_mean"])), round(float(row["out_mean"])))


def fit(model: Model, system: str, tensor_parallel: int) -> dict[str, str] | None:
    """The fit to use, if the model was measured so: the preferred precision, then the least error.

    Only replicas on one node, without expert parallelism; a fit whose error is above 15 % is no fit.
    """
    fits = [
        row
        for row in table("silicon_law3_fits.csv")
        if (row["model_path"], row["system"], int(row["tp_size"])) == (model.path, system, tensor_parallel)
        and row["precision"] in model.precisions
        and row["moe_ep_size"] == "1"
        and float(row["law3_mape"]) <= 15
    ]
    return min(
        fits, key=lambda r: (model.precisions.index(r["precision"]), float(r["law3_mape"])), default=None
    )


def profiles(name: str, model: Model, tokens: int) -> list[dict[str, Any]]:
    """A profile for each unit on which the model was measured and `tokens` per request fit."""
    memory = {row["system"]: float(row["mem_gib"]) * BYTES_PER_GIB for row in table("gpu_specs.csv")}
    result = []
    for gpu_type, gpu in GPUS.items():
        least_alpha = float("inf")
        for cards in UNITS:
            row = fit(model, gpu.system, cards)
            # More cards take less time: a fit that says otherwise lacks the small batches that would tell.
            if row is None or float(row["law3_p0"]) > least_alpha:
                continue
            least_alpha = float(row["law3_p0"])
            kv_bytes = MEMORY_SHARE * memory[gpu.system] * cards - model.weight_bytes
            batch = min(int(row["Bmax"]), int(kv_bytes // (model.kv_bytes_per_token * tokens)))
            if batch >= 1:
                result.append(
                    {
                        "name": name,
                        "acc": f"{gpu_type}-TP{cards}",
                        "accCount": 1,
                        "maxBatchSize": batch,
                        "perfParms": {
                            "alpha": float(row["law3_p0"]),
                            "beta": float(row["law3_p1"]),
                            "gamma": float(row["law3_p2"]),
                        },
                    }
                )
    return result


def deployment(trace: str, model: str) -> str:
    """Long requests need a deployment of their own: their KV cache allows a smaller batch."""
    return f"{model}-long" if trace == "long" else model


def model_target(trace: str, name: str, service_class: str) -> dict[str, Any]:
    model = MODELS[name]
    targets = {"Premium": model.interactive, "Standard": model.server, "Batch": BATCH}[service_class]
    return {"model": deployment(trace, name), "slo-ttft": targets.ttft_ms, "slo-itl": targets.itl_ms}


def accelerators() -> list[dict[str, Any]]:
    price = {row["instance_type"]: row for row in table("gpu_prices.csv")}
    result = []
    for gpu_type, gpu in GPUS.items():
        row = price[gpu.instance_type]
        cents_per_card = 100 * float(row["usd_per_hour"]) / int(row["gpu_count"])
        for cards in UNITS:
            cost = round(cents_per_card * cards, 2)
            unit = {"name": f"{gpu_type}-TP{cards}", "type": gpu_type, "multiplicity": cards, "cost": cost}
            result.append(unit)
    return result


def models(shapes: dict[str, Shape]) -> list[dict[str, Any]]:
    longest: dict[tuple[str, str], int] = {}
    for trace, model, _, _ in SPLIT:
        key = (deployment(trace, model), model)
        longest[key] = max(longest.get(key, 0), shapes[trace].in_tokens + shapes[trace].out_tokens)
    return [row for (name, model), tokens in longest.items() for row in profiles(name, MODELS[model], tokens)]


def service_classes() -> list[dict[str, Any]]:
    result = []
    for service_class, priority in PRIORITY.items():
        pairs = dict.fromkeys((trace, model) for trace, model, of, _ in SPLIT if of == service_class)
        targets = {row["model"]: row for row in (model_target(*pair, service_class) for pair in pairs)}
        result.append({"name": service_class, "priority": priority, "modelTargets": list(targets.values())})
    return result


def servers(shapes: dict[str, Shape]) -> list[dict[str, Any]]:
    result = []
    for trace, model, service_class, share in SPLIT:
        shape = shapes[trace]
        load = {
            "arrivalRate": round(FLEET_SCALE * share * shape.requests, 2),
            "avgInTokens": shape.in_tokens,
            "avgOutTokens": shape.out_tokens,
        }
        result.append(
            {
                "name": f"{service_class.lower()}-{trace}-{model}",
                "class": service_class,
                "model": deployment(trace, model),
                "currentAlloc": {"load": load},
            }
        )
    return result


def system() -> dict[str, Any]:
    shapes = {trace: peak(trace) for trace in TRACES}
    counts = [{"type": name, "count": gpu.cards} for name, gpu in GPUS.items()]
    return {
        "system": {
            "acceleratorData": {"accelerators": accelerators()},
            "capacityData": {"count": counts},
            "modelData": {"models": models(shapes)},
            "serviceClassData": {"serviceClasses": service_classes()},
            "serverData": {"servers": servers(shapes)},
            "optimizerData": {"optimizer": {"gap": 1e-6}},
        }
    }


def text() -> str:
    return json.dumps(system(), indent=1) + "\n"


if __name__ == "__main__":
    (HERE / "system.json").write_text(text(), encoding="utf-8")

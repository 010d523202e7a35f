"""The system that documentation, demo and the first solve of every worker use: two servers, two GPU types."""

from __future__ import annotations

import json
from typing import Any


def example_system() -> dict[str, Any]:
    """Return a small request body: Premium chat and Free batch on two GPU types, of which one is scarce.

    The profiles and prices are made up, in the range of an 8B and a 70B model on recent GPUs.
    """
    return {
        "system": {
            "acceleratorData": {
                "accelerators": [
                    {"name": "A100", "type": "A100", "cost": 160.0},
                    {"name": "H100", "type": "H100", "cost": 300.0},
                ]
            },
            "capacityData": {"count": [{"type": "A100", "count": 32}, {"type": "H100", "count": 6}]},
            "modelData": {
                "models": [
                    _profile("llama-8b", "A100", 1, 64, (9.2, 0.12), (14.0, 0.021)),
                    _profile("llama-8b", "H100", 1, 96, (6.1, 0.07), (9.0, 0.011)),
                    _profile("llama-70b", "A100", 4, 32, (21.0, 0.41), (45.0, 0.085)),
                    _profile("llama-70b", "H100", 2, 48, (19.0, 0.29), (36.0, 0.052)),
                ]
            },
            "serviceClassData": {
                "serviceClasses": [
                    {
                        "name": "Premium",
                        "priority": 1,
                        "modelTargets": [{"model": "llama-70b", "slo-itl": 40.0, "slo-ttft": 1000.0}],
                    },
                    {
                        "name": "Free",
                        "priority": 10,
                        "modelTargets": [{"model": "llama-8b", "slo-itl": 80.0, "slo-ttft": 3000.0}],
                    },
                ]
            },
            "serverData": {
                "servers": [
                    _server("chat", "Premium", "llama-70b", 400.0, 900, 250),
                    _server("batch", "Free", "llama-8b", 2000.0, 500, 400),
                ]
            },
            "optimizerData": {"optimizer": {"saturationPolicy": "PriorityExhaustive"}},
        }
    }


def example_body() -> bytes:
    """Return `example_system` as JSON text."""
    return json.dumps(example_system()).encode()


def _profile(
    model: str,
    accelerator: str,
    cards: int,
    batch: int,
    decode_ms: tuple[float, float],
    prefill_ms: tuple[float, float],
) -> dict[str, Any]:
    return {
        "name": model,
        "acc": accelerator,
        "accCount": cards,
        "maxBatchSize": batch,
        "atTokens": 512,
        "decodeParms": {"alpha": decode_ms[0], "beta": decode_ms[1]},
        "prefillParms": {"gamma": prefill_ms[0], "delta": prefill_ms[1]},
    }


def _server(
    name: str, service_class: str, model: str, rate_rpm: float, in_tokens: int, out_tokens: int
) -> dict[str, Any]:
    load = {"arrivalRate": rate_rpm, "avgInTokens": in_tokens, "avgOutTokens": out_tokens}
    return {
        "name": name,
        "class": service_class,
        "model": model,
        "minNumReplicas": 1,
        "currentAlloc": {"accelerator": "", "numReplicas": 0, "load": load},
    }

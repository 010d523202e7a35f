"""Variants, workloads and snapshots for the tests, in the form that users of either generation have deployed.

Names, prices and profiles are those of the samples in github.com/llm-d/llm-d-workload-variant-autoscaler
(Apache-2.0): facts, written anew.
"""

import json
from typing import Any

from controller.configmaps import parse_accelerators, parse_classes
from controller.crd import Variant, VariantKey, parse_variant
from controller.inventory import GpuNode, Inventory
from controller.settings import Settings
from controller.snapshot import Configuration, Signal, Snapshot, Traffic, Workload
from solver import schema
from solver.optimize import Defaults, RequestOptions, optimize_json

MODEL = "unsloth/Meta-Llama-3.1-8B"
NAMESPACE = "llm-d-sim"

COSTS = {
    "A100": '{"device": "NVIDIA-A100-PCIE-80GB", "cost": "40.00"}',
    "H100": '{"device": "NVIDIA-H100-80GB-HBM3", "cost": "100.0"}',
    "MI300X": '{"device": "AMD-MI300X-192GB", "cost": "65.00"}',
    "G2": '{"device": "Intel-Gaudi-2-96GB", "cost": "23.00"}',
}

CLASSES = {
    "premium.yaml": f"""
name: Premium
priority: 1
data:
  - model: {MODEL}
    slo-tpot: 24
    slo-ttft: 500
  - model: llama0-70b
    slo-tpot: 80
    slo-ttft: 500
""",
    "freemium.yaml": """
name: Freemium
priority: 10
data:
  - model: granite-13b
    slo-tpot: 200
    slo-ttft: 2000
""",
}


def profile(acc: str, alpha: str = "20.58", beta: str = "0.41", **more: Any) -> dict[str, Any]:
    """Mid 2025: the law in the entry itself, numbers as strings."""
    return {"acc": acc, "accCount": 1, "alpha": alpha, "beta": beta, "maxBatchSize": 4, **more}


def va(
    name: str = "vllm",
    *,
    namespace: str = NAMESPACE,
    model: str = MODEL,
    label: str = "A100",
    profiles: list[dict[str, Any]] | None = None,
    annotations: dict[str, str] | None = None,
    status: dict[str, Any] | None = None,
    **spec: Any,
) -> dict[str, Any]:
    """A VariantAutoscaling object; with `profiles` of 2025, without them of 2026."""
    if profiles is not None:
        spec["modelProfile"] = {"accelerators": profiles}
        spec.setdefault("sloClassRef", {"name": "premium-slo", "key": "opt-125m"})
    else:
        spec.setdefault("scaleTargetRef", {"apiVersion": "apps/v1", "kind": "Deployment", "name": name})
    metadata: dict[str, Any] = {"name": name, "namespace": namespace, "uid": f"uid-{name}", "generation": 1}
    if label:
        metadata["labels"] = {"inference.optimization/acceleratorName": label}
    if annotations:
        metadata["annotations"] = annotations
    return {
        "apiVersion": "llmd.ai/v1alpha1",
        "kind": "VariantAutoscaling",
        "metadata": metadata,
        "spec": {"modelID": model, **spec},
        "status": status or {},
    }


def law1(acc: str, model: str = MODEL, **more: Any) -> schema.ModelProfile:
    """A profile as the ConfigMap model-profiles gives it."""
    return schema.ModelProfile.model_validate(profile(acc, **more) | {"name": model})


def signal(completed_rpm: float, pod: str = "", **more: Any) -> Signal:
    """What vLLM's series say: 128 tokens in, 178 out."""
    given: dict[str, Any] = {"model": MODEL, "namespace": NAMESPACE} | more
    given = {"input_tokens": 128.0, "output_tokens": 178.0, "ttft_ms": 120.0, "itl_ms": 21.5} | given
    return Signal(pod=pod, completed_rpm=completed_rpm, **given)


def nodes(**cards: int) -> Inventory:
    """One node for each price-list accelerator, with so many cards."""
    devices = {name: json.loads(text)["device"] for name, text in COSTS.items()}
    return Inventory(tuple(GpuNode(f"node-{n}", devices[n], c) for n, c in sorted(cards.items())), {}, 0.0)


def snapshot(
    *documents: dict[str, Any],
    workloads: dict[str, Workload] | None = None,
    signals: tuple[Signal, ...] = (),
    inventory: Inventory | None = None,
    settings: Settings | None = None,
    profiles: tuple[schema.ModelProfile, ...] = (),
    classes: dict[str, str] | None = None,
    capacity: dict[str, int] | None = None,
    **more: Any,
) -> Snapshot:
    """A snapshot of these objects; each target runs one ready replica where nothing else is said."""
    variants = tuple(sorted((parse_variant(document) for document in documents), key=lambda v: v.key))
    given = workloads or {}
    there = {v.key: given.get(v.key.name, Workload(1, 1)) for v in variants}
    demands = more.pop("demands", ())
    return Snapshot(
        variants=variants,
        workloads=there,
        configuration=Configuration(
            settings=settings or Settings(),
            accelerators=parse_accelerators(COSTS).value,
            classes=parse_classes(classes or CLASSES).value,
            profiles=profiles,
            capacity=capacity or {},
        ),
        traffic=Traffic(signals, demands),
        inventory=inventory or nodes(A100=8, H100=8, MI300X=8, G2=8),
        **more,
    )


def key(name: str = "vllm", namespace: str = NAMESPACE) -> VariantKey:
    return VariantKey(namespace, name)


def only(variants: tuple[Variant, ...]) -> Variant:
    (variant,) = variants
    return variant


def solved(system: schema.System) -> schema.Response:
    """The real answer of the solver, over the wire's own text."""
    body = schema.SystemRequest(system=system).model_dump_json().encode()
    return schema.Response.model_validate_json(optimize_json(body, RequestOptions(), Defaults()).body)

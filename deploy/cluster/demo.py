"""What runs in the demo's cluster: nodes, model servers and their variants, by the values of the chart."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from fake_vllm import Engine, Server
from story import CHAT, CODER, DOCS

VALUES = Path(__file__).parent / "demo-values.yaml"

NODES = (
    ("h100-node", "NVIDIA-H100-80GB-HBM3", 8),
    ("a100-node", "NVIDIA-A100-PCIE-80GB", 8),
    ("mi300x-node", "AMD-MI300X-192GB", 8),
)

# Mean tokens of a request: input, output.
SIZES = {CHAT: (512, 128), CODER: (1024, 192), DOCS: (512, 256)}


@dataclass(frozen=True)
class Variant:
    """A Deployment of a model on an accelerator, and the VariantAutoscaling of the same name."""

    name: str
    model: str
    accelerator: str


VARIANTS = (
    Variant("chat-h100", CHAT, "H100"),
    Variant("coder-mi300x", CODER, "MI300X"),
    Variant("docs-a100", DOCS, "A100"),
    Variant("docs-h100", DOCS, "H100"),
)


@dataclass(frozen=True)
class Target:
    """What the service class of a model promises."""

    service_class: str
    ttft_ms: float
    itl_ms: float


@dataclass(frozen=True)
class Demo:
    """The values, as the rest of the demo needs them.

    Attributes
    ----------
    device_of : dict of str to str
        Accelerator -> what nodes call it.
    cents_per_h : dict of str to float
        Accelerator -> price of a card.
    targets : dict of str to Target
        By model.
    engines : dict of (str, str) to Engine
        By model and accelerator.
    namespace, system_namespace : str
    """

    device_of: dict[str, str]
    cents_per_h: dict[str, float]
    targets: dict[str, Target]
    engines: dict[tuple[str, str], Engine]
    namespace: str = "llm"
    system_namespace: str = "fleetopt-system"

    def servers(self) -> dict[tuple[str, str], Server]:
        """Return what the pods of each variant are, by namespace and label."""
        return {
            (self.namespace, v.name): Server(v.model, self.engines[v.model, v.accelerator]) for v in VARIANTS
        }

    def objects(self) -> list[dict[str, Any]]:
        """Return the namespaces, and a Deployment and a VariantAutoscaling for each variant."""
        spaces = [
            {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}}
            for name in (self.namespace, self.system_namespace)
        ]
        return [*spaces, *map(self._deployment, VARIANTS), *map(self._variant, VARIANTS)]

    def _deployment(self, variant: Variant) -> dict[str, Any]:
        device = self.device_of[variant.accelerator]
        vendor = "amd.com" if device.startswith("AMD") else "nvidia.com"
        batch = self.engines[variant.model, variant.accelerator].max_batch
        container = {
            "name": "vllm",
            "image": "vllm/vllm-openai",
            "args": [f"--model={variant.model}", f"--max-num-seqs={batch}"],
            "resources": {"requests": {f"{vendor}/gpu": "1"}, "limits": {f"{vendor}/gpu": "1"}},
        }
        labels = {"app": variant.name}
        pod = {"containers": [container], "nodeSelector": {f"{vendor}/gpu.product": device}}
        return {
            "apiVersion": "apps/v1",
            "kind": "Deployment",
            "metadata": {"name": variant.name, "namespace": self.namespace},
            "spec": {
                "replicas": 1,
                "selector": {"matchLabels": labels},
                "template": {"metadata": {"labels": labels}, "spec": pod},
            },
        }

    def _variant(self, variant: Variant) -> dict[str, Any]:
        return {
            "apiVersion": "llmd.ai/v1alpha1",
            "kind": "VariantAutoscaling",
            "metadata": {
                "name": variant.name,
                "namespace": self.namespace,
                "labels": {"inference.optimization/acceleratorName": variant.accelerator},
            },
            "spec": {
                "modelID": variant.model,
                "scaleTargetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": variant.name},
                # An HPA has at least one replica.
                "minReplicas": 1,
                "maxReplicas": 8,
            },
        }


def read_demo(values: Path = VALUES) -> Demo:
    """Read the values of the chart."""
    document = yaml.safe_load(values.read_text())
    prices = document["acceleratorUnitCosts"]
    targets = {}
    for text in document["serviceClasses"].values():
        its = yaml.safe_load(text)
        for entry in its["data"]:
            targets[entry["model"]] = Target(its["name"], entry["slo-ttft"], entry["slo-tpot"])
    engines = {}
    for text in document["modelProfiles"].values():
        for entry in yaml.safe_load(text):
            decode, prefill = entry["decodeParms"], entry["prefillParms"]
            engines[entry["name"], entry["acc"]] = Engine(
                alpha_ms=decode["alpha"],
                beta_ms=decode["beta"],
                max_batch=entry["maxBatchSize"],
                gamma_ms=prefill["gamma"],
                delta_ms=prefill["delta"],
            )
    return Demo(
        device_of={name: entry["device"] for name, entry in prices.items()},
        cents_per_h={name: float(entry["cost"]) for name, entry in prices.items()},
        targets=targets,
        engines=engines,
    )

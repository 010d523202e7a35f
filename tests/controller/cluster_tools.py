"""A real etcd and kube-apiserver on loopback, and the objects that tests put there."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml
from controller_tools import CLASSES, COSTS
from kubernetes import client
from prometheus_tools import wait_until

DEPLOY = Path(__file__).parents[2] / "deploy"
sys.path.insert(0, str(DEPLOY / "cluster"))

from control_plane import ControlPlane  # noqa: E402 - after the path
from processes import find_binary  # noqa: E402

SYSTEM = "fleetopt-system"


def binaries() -> Path | None:
    """Folder of kube-apiserver: KUBEBUILDER_ASSETS, or what deploy/cluster/build.sh makes."""
    found = find_binary("kube-apiserver")
    return Path(found).parent if found else None


needs_cluster = pytest.mark.skipif(
    bool(ControlPlane.binaries_missing()), reason="needs " + "; ".join(ControlPlane.binaries_missing())
)


@contextmanager
def control_plane(folder: Path) -> Iterator[ControlPlane]:
    """Run etcd and kube-apiserver with RBAC and an administrator's token."""
    with ControlPlane(folder) as plane:
        yield plane


class Admin:
    """Puts objects into the cluster, as an administrator."""

    def __init__(self, plane: ControlPlane) -> None:
        self.api = plane.api()
        self.core = client.CoreV1Api(self.api)
        self.custom = client.CustomObjectsApi(self.api)
        self.apply = plane.apply

    def namespace(self, name: str) -> None:
        self.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}})

    def config_map(self, name: str, data: dict[str, str]) -> None:
        metadata = {"name": name, "namespace": SYSTEM}
        self.apply({"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": data})

    def prepare(self) -> None:
        """The resource definition, the system namespace and the two ConfigMaps that everybody has."""
        crd = yaml.safe_load((DEPLOY / "crd" / "variantautoscalings.llmd.ai.yaml").read_text())
        self.apply(crd)
        self.namespace(SYSTEM)
        self.config_map("accelerator-unit-costs", COSTS)
        self.config_map("service-classes-config", CLASSES)
        wait_until(lambda: bool(self.variants() is not None))

    def variants(self) -> list[dict[str, Any]] | None:
        try:
            found: Any = self.custom.list_cluster_custom_object("llmd.ai", "v1alpha1", "variantautoscalings")
        except client.ApiException:
            return None
        items: list[dict[str, Any]] = found["items"]
        return items

    def variant(self, namespace: str, name: str) -> dict[str, Any]:
        return next(
            v
            for v in self.variants() or []
            if (v["metadata"]["namespace"], v["metadata"]["name"]) == (namespace, name)
        )

    def replicas(self, namespace: str, name: str) -> int:
        scale = client.AppsV1Api(self.api).read_namespaced_deployment_scale(name, namespace)
        assert scale.spec
        return scale.spec.replicas or 0


def deployment(
    name: str, namespace: str, *, replicas: int = 1, ready: int | None = None, gpus: int = 1, **pod_spec: Any
) -> dict[str, Any]:
    labels = {"app": name}
    resources = {"limits": {"nvidia.com/gpu": str(gpus)}, "requests": {"nvidia.com/gpu": str(gpus)}}
    container = {"name": "vllm", "image": "vllm/vllm-openai", "resources": resources}
    template = {"metadata": {"labels": labels}, "spec": {"containers": [container], **pod_spec}}
    serving = replicas if ready is None else ready
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": name, "namespace": namespace},
        "spec": {"replicas": replicas, "selector": {"matchLabels": labels}, "template": template},
        "status": {"replicas": replicas, "readyReplicas": serving, "observedGeneration": 1},
    }


def node(name: str, device: str, cards: int = 8) -> dict[str, Any]:
    vendor = "amd.com" if device.startswith("AMD") else "nvidia.com"
    return {
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {"name": name, "labels": {f"{vendor}/gpu.product": device}},
        "status": {
            "allocatable": {f"{vendor}/gpu": str(cards)},
            "capacity": {f"{vendor}/gpu": str(cards)},
            "conditions": [{"type": "Ready", "status": "True"}],
        },
    }


def pod(name: str, namespace: str, on: str, gpus: int, **labels: str) -> dict[str, Any]:
    resources = {"limits": {"nvidia.com/gpu": str(gpus)}, "requests": {"nvidia.com/gpu": str(gpus)}}
    container = {"name": "c", "image": "i", "resources": resources}
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "namespace": namespace, "labels": labels},
        "spec": {"nodeName": on, "containers": [container]},
    }

"""The product in a real cluster: installed by its chart, run under its own account, with load.

Pods cannot run anything here: controller and service are processes of this machine, the controller with the
arguments that the chart gives its container, and one process answers for all model servers.
"""

import json
import re
import ssl
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import yaml
from cluster import Cluster
from fake_vllm import Engine, FakeServing, Server
from kubernetes.client.exceptions import ApiException
from processes import BUILD, Daemon, binary, cache_folder, free_port, missing, wait_until

ROOT = Path(__file__).parents[2]
CHART = ROOT / "deploy" / "helm" / "fleetopt"
SYSTEM = "fleetopt-system"
DEFINITIONS = cache_folder() / "crds"
ACCOUNT = "fleetopt-controller"
MONITORING = "monitoring"

# What the tests need and is not there, each with how to get it.
MISSING = sorted({*Cluster.binaries_missing(), *Cluster.binaries_missing("keda"), *missing(["helm"])})
if not DEFINITIONS.is_dir():
    MISSING.append(f"the definitions of KEDA and the Prometheus operator: {BUILD} copies them")

# What nodes call their cards; one has another name in the price list, as in the wild.
A100, H100, H200 = "NVIDIA-A100-PCIE-80GB", "NVIDIA-H100-80GB-HBM3", "NVIDIA-H200-141GB-HBM3e"
L40S, MI300X, GAUDI = "NVIDIA-L40S", "AMD-MI300X-192G", "Intel-Gaudi-2-96GB"
NODES = [("a100", A100, 8), ("h100", H100, 8), ("h200", H200, 4), ("l40s", L40S, 2), ("mi300x", MI300X, 2)]
NODES.append(("gaudi", GAUDI, 4))
COSTS_CENTS_PER_H = {
    "A100": (A100, 40),
    "H100": (H100, 100),
    "H200": (H200, 120),
    "L40S": (L40S, 30),
    "MI300X": ("AMD-MI300X-192GB", 65),
    "G2": (GAUDI, 23),
}

# The object of 2025 brings its profile; for the others ConfigMap model-profiles has one, by which a replica
# does 10.5 requests/s of 40 tokens within the targets.
MODEL_2025, PREMIUM, FREEMIUM = "unsloth/Meta-Llama-3.1-8B", "llama-8b", "granite-13b"
ENGINE_2025 = Engine(alpha_ms=20.58, beta_ms=0.41, max_batch=4)
ENGINE = Engine(alpha_ms=8.0, beta_ms=0.25, max_batch=5)

SETTINGS = {
    "GLOBAL_OPT_INTERVAL": "2s",
    "FLEETOPT_RATE_WINDOW": "6s",
    "FLEETOPT_SCALE_DOWN_WINDOW": "4s",
    "FLEETOPT_SCALE_TO_ZERO_RETENTION": "3s",
}


@dataclass(frozen=True)
class Numbers:
    """How many replicas a variant is to have and has, by everyone who says so."""

    status: int | None
    gauge: float | None
    external: float | None
    replicas: int
    ready: int

    def are(self, count: int) -> bool:
        """Whether all agree on this."""
        said = (self.status, self.gauge, self.external, self.replicas, self.ready)
        return all(number == count for number in said)


class Controller:
    """A controller process, with the arguments that the chart gives its container."""

    def __init__(self, fleet: "Fleet", name: str, port: int, *arguments: str) -> None:
        self.port, self._probes, self._reader = port, free_port(), fleet.reader
        kubeconfig = fleet.cluster.kubeconfig(fleet.folder / f"{name}.kubeconfig", fleet.token)
        container = fleet.container("fleetopt-controller", "controller")
        self.daemon = Daemon(
            [
                *(sys.executable, "-m", "controller"),
                *container["args"][1:],
                f"--kubeconfig={kubeconfig}",
                f"--system-namespace={SYSTEM}",
                f"--metrics-bind-address=127.0.0.1:{port}",
                f"--health-probe-bind-address=127.0.0.1:{self._probes}",
                *arguments,
            ],
            fleet.folder / f"{name}.log",
        )

    def start(self) -> "Controller":
        self.daemon.start()
        url = f"http://127.0.0.1:{self._probes}/readyz"
        wait_until(lambda: get(url) == "ok\n", f"{self.daemon.name} is ready", 120.0, [self.daemon])
        return self

    def ask(self, path: str, token: str, method: str = "GET") -> tuple[int, str]:
        """Status and text of what it serves beside its probes, over TLS."""
        request = urllib.request.Request(f"https://127.0.0.1:{self.port}{path}", method=method)
        if token:
            request.add_header("Authorization", f"Bearer {token}")
        # The certificate is one that the controller signs itself.
        unverified = ssl._create_unverified_context()
        try:
            with urllib.request.urlopen(request, timeout=10.0, context=unverified) as answer:
                return answer.status, str(answer.read().decode())
        except urllib.error.HTTPError as error:
            with error:
                return error.code, str(error.read().decode())

    def metric(self, name: str, **labels: str) -> float | None:
        """Value of its series with these labels; None: there is none."""
        status, text = self.ask("/metrics", self._reader)
        assert status == 200, text
        for line in text.splitlines():
            series = re.fullmatch(r"(\w+)(?:\{(.*)\})? (\S+)", line)
            if series and series[1] == name and all(f'{k}="{v}"' in series[2] for k, v in labels.items()):
                return float(series[3])
        return None


class Fleet:
    """A cluster with everything that a user has, from ``with`` to its end."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.serving = FakeServing(step_s=0.02)
        self.ports = [free_port(), free_port()]
        self.cluster = Cluster(folder, pod_ready_s=2.0)
        self._stack = ExitStack()

    def __enter__(self) -> "Fleet":
        with ExitStack() as stack:
            self._stack = stack
            self._start()
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def _start(self) -> None:
        assert not MISSING, "\n".join(MISSING)
        self._stack.enter_context(self.cluster)
        self._stack.enter_context(self.serving)
        for path in sorted(DEFINITIONS.glob("*.yaml")):
            self.cluster.apply_file(path)
        self.cluster.add_nodes(NODES)
        for namespace in ("hpa", "keda", MONITORING, SYSTEM):
            self.namespace(namespace)
        self.reader, self.waker, self.stranger = map(self._account, ("prometheus", "gateway", "stranger"))
        self.prometheus = self.cluster.start_prometheus(self._scrapes())
        self._start_service()
        self.install()
        self.token = self.cluster.token(ACCOUNT, SYSTEM)
        self.controller = self.run(Controller(self, "controller-1", self.ports[0]))

    def _account(self, name: str) -> str:
        """Make a service account beside the product and return its token."""
        metadata = {"name": name, "namespace": MONITORING}
        self.cluster.apply({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": metadata})
        return self.cluster.token(name, MONITORING)

    def _scrapes(self) -> list[dict[str, Any]]:
        """As a PodMonitor of the model servers and the chart's ServiceMonitor label them."""
        controllers = [
            {"targets": [f"127.0.0.1:{port}"], "labels": {"namespace": SYSTEM, "pod": f"controller-{number}"}}
            for number, port in enumerate(self.ports, 1)
        ]
        return [
            {
                "job_name": "vllm",
                "honor_labels": True,
                "static_configs": [{"targets": [self.serving.target]}],
            },
            {
                "job_name": "fleetopt",
                "scheme": "https",
                # The certificate is one that the controller signs itself.
                "tls_config": {"insecure_skip_verify": True},
                "authorization": {"credentials": self.reader},
                "static_configs": controllers,
            },
        ]

    def _start_service(self) -> None:
        port = free_port()
        self.optimizer = f"http://127.0.0.1:{port}"
        command = [str(Path(sys.executable).parent / "fleetopt"), "serve", f"--port={port}", "--workers=1"]
        service = Daemon(command, self.folder / "service.log")
        service.start()
        self._stack.callback(service.stop)
        url = f"{self.optimizer}/readyz"
        wait_until(lambda: bool(get(url)), "the service is ready", 120.0, [service])

    def values(self) -> dict[str, Any]:
        """Values of the chart: what the tests need, and every optional object."""
        profiles = [
            {
                "name": model,
                "acc": acc,
                "alpha": ENGINE.alpha_ms,
                "beta": ENGINE.beta_ms,
                "maxBatchSize": ENGINE.max_batch,
            }
            for model in (PREMIUM, FREEMIUM)
            for acc in COSTS_CENTS_PER_H
        ]
        return {
            "controller": {
                "actuate": "scale",
                "ownerReferences": True,
                "extraArgs": [
                    "--leader-election-lease-duration=6s",
                    "--leader-election-renew-deadline=5s",
                    "--leader-election-retry-period=1s",
                ],
            },
            "metrics": {
                "secure": True,
                "readers": [{"name": "prometheus", "namespace": MONITORING}],
                "wakers": [{"name": "gateway", "namespace": MONITORING}],
            },
            "optimizerUrl": self.optimizer,
            "settings": {**SETTINGS, "PROMETHEUS_BASE_URL": self.prometheus},
            "acceleratorUnitCosts": {
                name: {"device": device, "cost": str(cost)}
                for name, (device, cost) in COSTS_CENTS_PER_H.items()
            },
            "serviceClasses": {
                "premium.yaml": yaml.safe_dump(service_class("Premium", 1, [MODEL_2025, PREMIUM])),
                "freemium.yaml": yaml.safe_dump(service_class("Freemium", 10, [FREEMIUM])),
            },
            "modelProfiles": {"rates": yaml.safe_dump(profiles)},
            "serviceMonitor": {"enabled": True},
            "prometheusRule": {"enabled": True},
            "networkPolicy": {"enabled": True},
            "podDisruptionBudget": {"enabled": True},
            "autoscalers": [
                {"name": "vllm", "namespace": "hpa", "maxReplicas": 8},
                {"name": "vllm", "namespace": "keda", "kind": "keda", "minReplicas": 0, "maxReplicas": 8},
            ],
        }

    def install(self) -> None:
        """Install the chart, as a user does."""
        file = self.folder / "values.yaml"
        file.write_text(yaml.safe_dump(self.values()))
        kubeconfig = self.cluster.kubeconfig(self.folder / "helm.kubeconfig")
        where = [f"--namespace={SYSTEM}", f"--kubeconfig={kubeconfig}", f"--values={file}"]
        run(binary("helm"), "upgrade", "--install", "fleetopt", str(CHART), *where)

    def container(self, deployment: str, name: str) -> dict[str, Any]:
        """A container that the chart installed."""
        found = self.cluster.get(f"/apis/apps/v1/namespaces/{SYSTEM}/deployments/{deployment}")
        containers = found["spec"]["template"]["spec"]["containers"]
        return next(container for container in containers if container["name"] == name)

    def run(self, controller: Controller) -> Controller:
        """Start a controller that ends with the fleet at the latest."""
        self._stack.callback(controller.daemon.stop)
        return controller.start()

    def namespace(self, name: str) -> None:
        self.cluster.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}})

    def serve(
        self, namespace: str, model: str, deployments: dict[str, str], *, engine: Engine = ENGINE
    ) -> None:
        """Deploy model servers by name, each on nodes with a device, and let load come to them."""
        self.namespace(namespace)
        for name, device in deployments.items():
            self.cluster.apply(deployment(name, namespace, device))
        servers = {(namespace, name): Server(model, engine) for name in deployments}
        self.serving.follow(self.cluster.api(), servers)

    def load(self, namespace: str, model: str, rate_rps: float, output_tokens: int = 40) -> None:
        self.serving.set_rate(namespace, model, rate_rps, input_tokens=20, output_tokens=output_tokens)

    def variant(self, namespace: str, name: str) -> dict[str, Any]:
        path = f"/apis/llmd.ai/v1alpha1/namespaces/{namespace}/variantautoscalings/{name}"
        found: dict[str, Any] = self.cluster.get(path)
        return found

    def deployment(self, namespace: str, name: str) -> dict[str, Any]:
        found: dict[str, Any] = self.cluster.get(f"/apis/apps/v1/namespaces/{namespace}/deployments/{name}")
        return found

    def numbers(self, namespace: str, name: str, target: str = "") -> Numbers:
        """What everybody says about a variant."""
        status = self.variant(namespace, name).get("status", {})
        workload = self.deployment(namespace, target or name)
        return Numbers(
            status.get("desiredOptimizedAlloc", {}).get("numReplicas"),
            self.controller.metric("inferno_desired_replicas", namespace=namespace, variant_name=name),
            self.external(namespace, name),
            workload["spec"]["replicas"],
            workload.get("status", {}).get("readyReplicas", 0),
        )

    def external(self, namespace: str, name: str) -> float | None:
        """What the external-metrics API says about a variant; None: it has no such series."""
        metric, selector = "inferno_desired_replicas", f"variant_name%3D{name}"
        if namespace == "keda":
            metric, selector = "s0-prometheus", f"scaledobject.keda.sh%2Fname%3D{name}"
        where = f"/apis/external.metrics.k8s.io/v1beta1/namespaces/{namespace}/{metric}"
        try:
            items = self.cluster.get(f"{where}?labelSelector={selector}")["items"]
        except ApiException:
            return None
        return quantity(items[0]["value"]) if items else None

    def until(
        self, condition: Callable[[], bool], what: str, *namespaces: str, limit_s: float = 120.0
    ) -> None:
        """Wait for something; when it does not happen the error shows these namespaces."""
        self.cluster.check()
        daemons = [self.controller.daemon]
        # Several tests wait at the same time, and each look asks everybody.
        wait_until(condition, what, limit_s, daemons, lambda: self.state(*namespaces), every_s=0.5)

    def state(self, *namespaces: str) -> str:
        """What a person would look at."""
        lines = []
        for namespace in namespaces:
            path = f"/apis/llmd.ai/v1alpha1/namespaces/{namespace}/variantautoscalings"
            for item in self.cluster.get(path)["items"]:
                lines.append(f"{namespace} {item['metadata']['name']}: {json.dumps(item.get('status'))}")
            for item in self.cluster.get(f"/apis/apps/v1/namespaces/{namespace}/deployments")["items"]:
                counts = {k: v for k, v in item["status"].items() if k.endswith("eplicas")}
                lines.append(f"{namespace} {item['metadata']['name']}: {item['spec']['replicas']} {counts}")
            path = f"/apis/autoscaling/v2/namespaces/{namespace}/horizontalpodautoscalers"
            for item in self.cluster.get(path)["items"]:
                lines.append(f"{namespace} HPA {item['metadata']['name']}: {json.dumps(item.get('status'))}")
        return "\n".join(lines)

    def granted(self) -> set[tuple[str, str, str]]:
        """What the roles that are bound to the controller's account allow: group, resource, verb."""
        found: set[tuple[str, str, str]] = set()
        base, account = "/apis/rbac.authorization.k8s.io/v1", {"name": ACCOUNT, "namespace": SYSTEM}
        for path, roles in (("", "clusterroles"), (f"/namespaces/{SYSTEM}", "roles")):
            bindings = self.cluster.get(f"{base}{path}/{roles[:-1]}bindings")["items"]
            for binding in bindings:
                if any(account.items() <= subject.items() for subject in binding.get("subjects", ())):
                    role = self.cluster.get(f"{base}{path}/{roles}/{binding['roleRef']['name']}")
                    for rule in role["rules"]:
                        found |= set(product(rule["apiGroups"], rule["resources"], rule["verbs"]))
        return found

    def condition(self, namespace: str, name: str, kind: str) -> str:
        """Status and reason of a condition of a variant."""
        conditions = self.variant(namespace, name).get("status", {}).get("conditions", ())
        return next((f"{c['status']} {c['reason']}" for c in conditions if c["type"] == kind), "")


def run(*command: str) -> str:
    """Output of a command that must succeed."""
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
    return done.stdout


def get(url: str) -> str:
    with urllib.request.urlopen(url, timeout=5.0) as answer:
        return str(answer.read().decode())


def quantity(text: str) -> float:
    """Read a number of Kubernetes such as ``3`` or ``2500m``."""
    return float(text[:-1]) / 1000 if text.endswith("m") else float(text)


def service_class(name: str, priority: int, models: list[str]) -> dict[str, Any]:
    data = [{"model": model, "slo-tpot": 24, "slo-ttft": 500} for model in models]
    return {"name": name, "priority": priority, "data": data}


def deployment(name: str, namespace: str, device: str, *, replicas: int = 1, gpus: int = 1) -> dict[str, Any]:
    """Pods with cards of a device, as a model server or another team has them."""
    vendor = {"NVIDIA": "nvidia.com", "AMD": "amd.com", "Intel": "intel.com"}[device.partition("-")[0]]
    resources = {"limits": {f"{vendor}/gpu": str(gpus)}}
    container = {"name": "vllm", "image": "vllm/vllm-openai", "resources": resources}
    pod = {"nodeSelector": {f"{vendor}/gpu.product": device}, "containers": [container]}
    template = {"metadata": {"labels": {"app": name}}, "spec": pod}
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": name, "namespace": namespace},
        "spec": {"replicas": replicas, "selector": {"matchLabels": {"app": name}}, "template": template},
    }


def variant_2025(namespace: str, name: str, accelerator: str, **annotations: str) -> dict[str, Any]:
    """An object as it was deployed in 2025: the profile inside, a class reference that leads nowhere."""
    figures = {"A100": ("20.58", "0.41"), "H100": ("20.58", "0.41"), "MI300X": ("7.77", "0.15")}
    figures["G2"] = ("17.15", "0.34")
    accelerators = [
        {"acc": acc, "accCount": 1, "alpha": alpha, "beta": beta, "maxBatchSize": 4}
        for acc, (alpha, beta) in figures.items()
    ]
    spec = {
        "modelID": MODEL_2025,
        "sloClassRef": {"name": "premium-slo", "key": "opt-125m"},
        "modelProfile": {"accelerators": accelerators},
    }
    return _variant(namespace, name, accelerator, spec, annotations)


def variant_2026(
    namespace: str, name: str, accelerator: str, model: str, target: str = "", **spec: Any
) -> dict[str, Any]:
    """An object as it was deployed in 2026: a target, a model, and the cost that the definition fills in."""
    ref = {"apiVersion": "apps/v1", "kind": "Deployment", "name": target or name}
    given = {"scaleTargetRef": ref, "modelID": model, "variantCost": "10.0", **spec}
    return _variant(namespace, name, accelerator, given, {})


def _variant(
    namespace: str, name: str, accelerator: str, spec: dict[str, Any], annotations: dict[str, str]
) -> dict[str, Any]:
    labels = {"inference.optimization/acceleratorName": accelerator}
    notes = {f"inference.optimization/{key}": value for key, value in annotations.items()}
    metadata = {"name": name, "namespace": namespace, "labels": labels, "annotations": notes}
    return {
        "apiVersion": "llmd.ai/v1alpha1",
        "kind": "VariantAutoscaling",
        "metadata": metadata,
        "spec": spec,
    }

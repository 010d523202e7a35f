"""A complete cluster on loopback, without Docker: every component is the real one but the machines.

::

    with Cluster(folder) as cluster:
        cluster.add_nodes([("node-1", "NVIDIA-H100-80GB-HBM3", 8)])
        cluster.start_prometheus([{"job_name": "controller", "static_configs": [{"targets": [...]}]}])
        cluster.apply({...})

Nodes and pods are kwok's: the scheduler places pods by the GPUs that nodes say they have, and each is ready
some seconds later. `build.sh` makes the programs.
"""

from __future__ import annotations

import json
import shutil
import socket
import urllib.request
from base64 import b64encode
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import yaml
from control_plane import CONTROLLERS, KWOK, METRICS, SCHEDULER, ControlPlane, tls_arguments
from kubernetes.client.exceptions import ApiException
from processes import Daemon, cache_folder, free_port, missing, wait_until

if TYPE_CHECKING:
    from collections.abc import Sequence

ExternalMetrics = Literal["prometheus-adapter", "keda"]

_HERE = Path(__file__).parent
_ADAPTER_RULES = _HERE.parent / "samples" / "prometheus-adapter-values.yaml"
_EXTERNAL = "v1beta1.external.metrics.k8s.io"
_PODS = "127.0.1.0/24"


class Cluster(ControlPlane):
    """API server, controllers, scheduler and nodes, from ``with`` to its end.

    Parameters
    ----------
    folder : Path
        Empty; keys, data and one log for each component go there.
    pod_ready_s : float
        From the start of a pod until it is ready.
    external_metrics : "prometheus-adapter", "keda" or None
        What serves external metrics to HPAs once Prometheus runs; `serve_external_metrics` changes it.
    """

    def __init__(
        self,
        folder: Path,
        *,
        pod_ready_s: float = 3.0,
        external_metrics: ExternalMetrics | None = "prometheus-adapter",
    ) -> None:
        super().__init__(folder, service_accounts=True)
        self._pod_ready_s, self._external_metrics = pod_ready_s, external_metrics
        self._prometheus = ""
        self._external: list[Daemon] = []
        self._components: list[Daemon] = []

    @staticmethod
    def binaries_missing(external_metrics: ExternalMetrics | None = "prometheus-adapter") -> list[str]:
        """Return which programs are not there, each with how to get it."""
        names = ["kube-controller-manager", "kube-scheduler", "kwok", "prometheus"]
        if external_metrics == "keda":
            names += ["keda-operator", "keda-adapter"]
        elif external_metrics is not None:
            names.append(external_metrics)
        return ControlPlane.binaries_missing() + missing(names)

    def _start(self) -> None:
        super()._start()
        self._start_controllers()
        self._start_scheduler()
        self._start_kwok()

    def _component(self, name: str, user: str, arguments: list[str]) -> Daemon:
        file = self._kubeconfig_of(user)
        daemon = self._run(self._daemon(name, [f"--kubeconfig={file}", *arguments]))
        self._components.append(daemon)
        return daemon

    def _kubeconfig_of(self, user: str) -> Path:
        return self.kubeconfig(self.folder / f"{user}.kubeconfig", self._tokens[user])

    def _start_controllers(self) -> None:
        self._component(
            "kube-controller-manager",
            CONTROLLERS,
            [
                "--leader-elect=false",
                "--secure-port=0",
                f"--root-ca-file={self.ca}",
                "--horizontal-pod-autoscaler-sync-period=5s",
                # A busy machine is no reason to think that a node is gone.
                "--node-monitor-grace-period=10m",
            ],
        )

    def _start_scheduler(self) -> None:
        self._component("kube-scheduler", SCHEDULER, ["--leader-elect=false", "--secure-port=0"])

    def _start_kwok(self) -> None:
        stages = [yaml.safe_load(path.read_text()) for path in sorted((_HERE / "stages").glob("*.yaml"))]
        for stage in stages:
            if stage["metadata"]["name"] == "pod-ready":
                stage["spec"]["delay"]["durationMilliseconds"] = round(1000.0 * self._pod_ready_s)
        file = self.folder / "stages.yaml"
        file.write_text(yaml.safe_dump_all(stages))
        arguments = [f"--config={file}", "--manage-all-nodes=true", "--node-ip=127.0.0.1", f"--cidr={_PODS}"]
        self._component("kwok", KWOK, arguments)

    def check(self) -> None:
        """Raise ComponentError, with the end of its log, when a component has ended by itself."""
        for daemon in (*self._components, *self._external):
            daemon.check()

    def component(self, name: str) -> Daemon:
        """Return the process of a component that runs, such as "prometheus"."""
        return next(daemon for daemon in self._components if daemon.name == name)

    def add_nodes(self, nodes: Sequence[tuple[str, str, int]]) -> None:
        """Add nodes, and wait until pods can be placed on them.

        Parameters
        ----------
        nodes : sequence of (name, product, GPUs)
            The product is the label of the vendor's device plugin, such as "NVIDIA-H100-80GB-HBM3"; its first
            part tells the vendor.
        """
        vendors = {"NVIDIA": "nvidia.com", "AMD": "amd.com", "Intel": "intel.com"}
        for name, product, gpus in nodes:
            vendor = vendors[product.partition("-")[0]]
            room = {"cpu": "128", "memory": "1Ti", "pods": "250", f"{vendor}/gpu": str(gpus)}
            labels = {f"{vendor}/gpu.product": product, f"{vendor}/gpu.count": str(gpus)}
            self.apply(
                {
                    "apiVersion": "v1",
                    "kind": "Node",
                    "metadata": {"name": name, "labels": {**labels, "kubernetes.io/hostname": name}},
                    "status": {"allocatable": room, "capacity": room},
                }
            )
        names = {name for name, _, _ in nodes}
        wait_until(
            lambda: names <= self._nodes_in_use(),
            f"nodes {sorted(names)} are ready",
            120.0,
            self._components,
        )

    def _nodes_in_use(self) -> set[str]:
        return {
            node["metadata"]["name"]
            for node in self.get("/api/v1/nodes")["items"]
            if not node["spec"].get("taints")
            and any(
                c["type"] == "Ready" and c["status"] == "True" for c in node["status"].get("conditions", ())
            )
        }

    def start_prometheus(self, scrape_configs: list[dict[str, Any]]) -> str:
        """Start Prometheus, then what serves external metrics, and return the base URL of Prometheus.

        Parameters
        ----------
        scrape_configs : list of dict
            As in its configuration; the interval is 1 s where they say nothing.
        """
        file, port = self.folder / "prometheus.yml", free_port()
        interval = {"scrape_interval": "1s", "scrape_timeout": "1s"}
        # JSON is YAML.
        file.write_text(json.dumps({"global": interval, "scrape_configs": scrape_configs}))
        prometheus = self._run(
            self._daemon(
                "prometheus",
                [
                    f"--config.file={file}",
                    f"--storage.tsdb.path={self.folder / 'prometheus'}",
                    f"--web.listen-address=127.0.0.1:{port}",
                ],
            )
        )
        self._components.append(prometheus)
        url = f"http://127.0.0.1:{port}"

        def ready() -> bool:
            with urllib.request.urlopen(f"{url}/-/ready", timeout=2.0) as answer:
                return bool(answer.status == 200)

        wait_until(ready, "Prometheus is ready", daemons=[prometheus])
        self._prometheus = url
        if self._external_metrics:
            self.serve_external_metrics(self._external_metrics)
        return url

    def serve_external_metrics(self, by: ExternalMetrics) -> None:
        """Serve external metrics by this from now on: the API server asks one at a time.

        Parameters
        ----------
        by : "prometheus-adapter" or "keda"
            The adapter needs Prometheus: `start_prometheus` comes first.
        """
        while self._external:
            self._external.pop().stop()
        port = free_port()
        if by == "keda":
            self._start_keda(port)
        else:
            self._start_adapter(port)
        self._register(by, port)

    def _start_adapter(self, port: int) -> None:
        assert self._prometheus, "start_prometheus comes first"
        file = self.folder / "adapter-rules.yaml"
        rules = yaml.safe_load(_ADAPTER_RULES.read_text())["rules"]["external"]
        file.write_text(json.dumps({"rules": [], "externalRules": rules}))
        self._start_external(
            "prometheus-adapter",
            [
                f"--config={file}",
                f"--prometheus-url={self._prometheus}",
                # A series is listed while it is younger than this.
                "--metrics-relist-interval=5s",
                "--metrics-max-age=1m",
                f"--secure-port={port}",
                "--bind-address=127.0.0.1",
                *tls_arguments(self._serving),
                f"--lister-kubeconfig={self._kubeconfig_of(METRICS)}",
                *self._delegated(),
            ],
        )

    def _delegated(self) -> list[str]:
        """Flags with which an aggregated API server asks ours who somebody is and what they may."""
        file = self._kubeconfig_of(METRICS)
        return [f"--authentication-kubeconfig={file}", f"--authorization-kubeconfig={file}"]

    def _start_external(self, name: str, arguments: list[str], environ: dict[str, str] | None = None) -> None:
        self._external.append(self._run(self._daemon(name, arguments, environ)))

    def _start_keda(self, port: int) -> None:
        for path in sorted((cache_folder() / "crds").glob("*keda.sh_*.yaml")):
            self.apply_file(path)
        self.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "keda"}})
        certificates = self.folder / "keda"
        certificates.mkdir(exist_ok=True)
        for name, source in (
            ("tls.crt", self._serving.certificate),
            ("tls.key", self._serving.key),
            ("ca.crt", self.ca),
        ):
            shutil.copy(source, certificates / name)
        file, metrics = self._kubeconfig_of(METRICS), f"localhost:{free_port()}"
        environ = {
            "KUBECONFIG": str(file),
            "POD_NAMESPACE": "keda",
            "POD_NAME": "keda-operator",
            "KEDA_CLUSTER_OBJECT_NAMESPACE": "keda",
            "WATCH_NAMESPACE": "",
        }
        self._start_external(
            "keda-operator",
            [
                "--leader-elect=false",
                f"--cert-dir={certificates}",
                "--enable-cert-rotation=false",
                "--enable-apiservice-patching=false",
                "--enable-webhook-patching=false",
                f"--metrics-bind-address=127.0.0.1:{free_port()}",
                f"--health-probe-bind-address=127.0.0.1:{free_port()}",
                f"--metrics-service-bind-address={metrics}",
            ],
            environ,
        )
        self._start_external(
            "keda-adapter",
            [
                f"--kubeconfig={file}",
                f"--lister-kubeconfig={file}",
                *self._delegated(),
                f"--cert-dir={certificates}",
                f"--client-ca-file={self.ca}",
                f"--metrics-service-address={metrics}",
                f"--secure-port={port}",
                "--bind-address=127.0.0.1",
                *tls_arguments(self._serving),
            ],
            environ,
        )

    def _register(self, by: str, port: int) -> None:
        """Send requests for external metrics to a port here, and wait until they get there."""
        ports = {"ports": [{"port": port, "protocol": "TCP"}]}
        service = {"type": "ExternalName", "externalName": "localhost", **ports}
        where = {"name": f"external-metrics-{by}", "namespace": "kube-system"}
        self.apply({"apiVersion": "v1", "kind": "Service", "metadata": where, "spec": service})
        wait_until(lambda: _listens(port), f"{by} listens", 120.0, self._external)
        group, version = "external.metrics.k8s.io", "v1beta1"
        self.apply(
            {
                "apiVersion": "apiregistration.k8s.io/v1",
                "kind": "APIService",
                "metadata": {"name": _EXTERNAL},
                "spec": {
                    "group": group,
                    "version": version,
                    "service": {**where, "port": port},
                    "caBundle": b64encode(self.ca.read_bytes()).decode(),
                    "groupPriorityMinimum": 100,
                    "versionPriority": 100,
                },
            }
        )
        wait_until(self._external_available, f"{by} serves external metrics", 120.0, self._external)

    def _external_available(self) -> bool:
        # The condition may still be that of the one before; an answer is of this one.
        try:
            self.get("/apis/external.metrics.k8s.io/v1beta1")
        except ApiException:
            return False
        return True


def is_true(document: dict[str, Any], condition: str) -> bool:
    """Whether a condition of an object is True."""
    found = document.get("status", {}).get("conditions", ())
    return any((c["type"], c["status"]) == (condition, "True") for c in found)


def _listens(port: int) -> bool:
    with socket.create_connection(("127.0.0.1", port), timeout=1.0):
        return True

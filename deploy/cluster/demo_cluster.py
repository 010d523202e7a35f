"""Starts the demo: cluster, model servers, the chart, fleetopt's service and its controller."""

from __future__ import annotations

import subprocess
import sys
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml
from cluster import Cluster
from demo import NODES, SIZES, VALUES, Demo, read_demo
from fake_vllm import FakeServing
from kubernetes.client.exceptions import ApiException
from observe import observe
from processes import ComponentError, Daemon, binary, free_port, wait_until
from urllib3.exceptions import HTTPError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from story import Seen

_CHART = Path(__file__).parent.parent / "helm" / "fleetopt"
_RELEASE = "fleetopt"

# A request that waits this long is given up, so the queue of a rush does not outlive it by much.
_PATIENCE_S = 20.0


class DemoCluster:
    """The cluster of the demo, running.

    Attributes
    ----------
    cluster : Cluster
    demo : Demo
    serving : FakeServing
    prometheus : str
        Base URL.
    kubeconfig : Path
        Of an administrator.
    daemons : list of Daemon
        Service and controller.
    """

    def __init__(self, cluster: Cluster, demo: Demo, serving: FakeServing) -> None:
        self.cluster, self.demo, self.serving = cluster, demo, serving
        self.prometheus = ""
        self.kubeconfig = cluster.kubeconfig(cluster.folder / "kubeconfig")
        self.daemons: list[Daemon] = []

    def check(self) -> None:
        """Raise ComponentError when a process has ended by itself."""
        self.cluster.check()
        for daemon in self.daemons:
            daemon.check()

    def set_rates(self, rates_rps: Mapping[str, float]) -> None:
        """Set what arrives, by model."""
        for model, rate_rps in rates_rps.items():
            input_tokens, output_tokens = SIZES[model]
            self.serving.set_rate(
                self.demo.namespace, model, rate_rps, input_tokens=input_tokens, output_tokens=output_tokens
            )

    def look(self) -> Seen | None:
        """Look at everything once; None while the API server or Prometheus does not answer."""
        try:
            return observe(self.cluster, self.prometheus, self.demo)
        except (ApiException, HTTPError, OSError):
            return None


@contextmanager
def started(folder: Path, say: Callable[[str], None]) -> Iterator[DemoCluster]:
    """Start everything, and end it, the latest first.

    Parameters
    ----------
    folder : Path
        Empty; keys, data and logs go there.
    say : callable
        Takes what is being done.

    Raises
    ------
    ComponentError
    """
    demo = read_demo()
    with ExitStack() as stack:
        say("Starting the control plane, the scheduler and the nodes ...")
        cluster = stack.enter_context(Cluster(folder))
        cluster.add_nodes(NODES)
        its = DemoCluster(cluster, demo, stack.enter_context(FakeServing(patience_s=_PATIENCE_S)))
        say("Starting Prometheus and its adapter ...")
        metrics_port, optimizer_port = free_port(), free_port()
        its.prometheus = cluster.start_prometheus(
            _scrape_configs(its.serving.target, metrics_port, demo.system_namespace)
        )
        say("Installing the chart, the variants and their HPAs ...")
        optimizer_url = f"http://127.0.0.1:{optimizer_port}"
        for path in sorted((_CHART / "crds").glob("*.yaml")):
            cluster.apply_file(path)
        for document in demo.objects():
            cluster.apply(document)
        for document in chart_objects(demo.system_namespace, its.prometheus, optimizer_url):
            cluster.apply(document)
        its.serving.follow(cluster.api(), demo.servers())
        say("Starting fleetopt's service and controller ...")
        its.daemons = [_service(folder, optimizer_port), _controller(cluster, demo, metrics_port)]
        for daemon in its.daemons:
            daemon.start()
            stack.callback(daemon.stop)
        wait_until(lambda: its.look() is not None, "everything answers", daemons=its.daemons)
        yield its


def chart_objects(namespace: str, prometheus_url: str, optimizer_url: str) -> list[dict[str, Any]]:
    """Render the chart with the demo's values; its Deployments run as processes instead."""
    command = [binary("helm"), "template", _RELEASE, str(_CHART), "--namespace", namespace]
    command += ["--values", str(VALUES), "--set", f"optimizerUrl={optimizer_url}"]
    command += ["--set", f"settings.PROMETHEUS_BASE_URL={prometheus_url}"]
    rendered = subprocess.run(command, check=False, capture_output=True, text=True)
    if rendered.returncode:
        raise ComponentError(f"helm template: {rendered.stderr}")
    documents = [document for document in yaml.safe_load_all(rendered.stdout) if document]
    return [document for document in documents if document["kind"] != "Deployment"]


def _scrape_configs(serving: str, metrics_port: int, namespace: str) -> list[dict[str, Any]]:
    # Labels of the controller's own pod, as a ServiceMonitor adds them; those of its series become exported_.
    its_pod = {"namespace": namespace, "pod": f"{_RELEASE}-controller-0"}
    controller = {"targets": [f"127.0.0.1:{metrics_port}"], "labels": its_pod}
    return [
        {"job_name": "vllm", "static_configs": [{"targets": [serving]}]},
        {"job_name": "controller", "static_configs": [controller]},
    ]


def _service(folder: Path, port: int) -> Daemon:
    program = str(Path(sys.executable).parent / "fleetopt")
    return Daemon([program, "serve", "--port", str(port)], folder / "optimizer.log")


def _controller(cluster: Cluster, demo: Demo, metrics_port: int) -> Daemon:
    token = cluster.token(f"{_RELEASE}-controller", demo.system_namespace)
    return Daemon(
        [
            str(Path(sys.executable).parent / "fleetopt"),
            "controller",
            f"--kubeconfig={cluster.kubeconfig(cluster.folder / 'controller.kubeconfig', token)}",
            f"--system-namespace={demo.system_namespace}",
            f"--metrics-bind-address=127.0.0.1:{metrics_port}",
            "--metrics-secure=false",
            "--health-probe-bind-address=0",
            f"--record={cluster.folder / 'record.jsonl'}",
        ],
        cluster.folder / "controller.log",
    )

"""A cluster on this machine, without Docker and without GPUs, that lives through a day in five minutes.

Real: API server, HPAs, scheduler, Prometheus and its adapter, the objects of the chart, fleetopt's controller
under its own account, and its service. Simulated: nodes, pods, and what their model servers count.
"""

from __future__ import annotations

import argparse
import shutil
import signal
import subprocess
import sys
import time
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import yaml
from cluster import Cluster
from demo import NODES, SIZES, VALUES, read_demo
from fake_vllm import FakeServing
from kubernetes.client.exceptions import ApiException
from leftovers import children, mark, run_folder, running
from observe import observe
from processes import ComponentError, Daemon, binary, find_binary, free_port, missing, wait_until
from rich.console import Console
from rich.live import Live
from rich.text import Text
from story import STORY, Seen, Story
from table import screen, summary
from urllib3.exceptions import HTTPError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from demo import Demo

_CHART = Path(__file__).parent.parent / "helm" / "fleetopt"
_RELEASE = "fleetopt"
_EVERY_S, _BLOCK_EVERY_S = 1.0, 10.0

# A request that waits this long is given up, so the queue of a rush does not outlive it by much.
_PATIENCE_S = 20.0


def main(argv: list[str] | None = None) -> int:
    """Start the cluster, tell the story, and run on until the end is asked for.

    Returns
    -------
    int
        0 when the story came true, 1 when it did not or something ended by itself, 2 when it cannot start.
    """
    parser = argparse.ArgumentParser(prog="up.py", description=__doc__)
    parser.add_argument("--story-only", action="store_true", help="end with the story")
    options = parser.parse_args(argv)
    folder = run_folder()
    lacking = [*Cluster.binaries_missing(), *missing(["helm"])]
    if lacking:
        print("\n  ".join(("These programs are missing:", *lacking)), file=sys.stderr)
        return 2
    if running(folder) is not None or children(folder):
        print("It runs already, or left something: make cluster-down ends it.", file=sys.stderr)
        return 2
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True, mode=0o700)
    mark(folder)
    # As Ctrl-C: everything ends in order.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    console = Console() if sys.stdout.isatty() else Console(width=120)
    story = Story(STORY)
    try:
        with started(folder, console) as demo_cluster:
            _tell(demo_cluster, story, console, options.story_only)
    except KeyboardInterrupt:
        console.print("Ended.")
    except ComponentError as error:
        console.print(Text(f"{error}\nLogs: {folder}", style="red"))
        return 1
    finally:
        (folder / "pid").unlink(missing_ok=True)
    if story.told:
        console.print(summary(story))
    return 0 if story.came_true else 1


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

    def set_rates(self, rates_rps: dict[str, float]) -> None:
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
def started(folder: Path, console: Console) -> Iterator[DemoCluster]:
    """Start everything, the latest to end first."""
    demo = read_demo()
    with ExitStack() as stack:
        console.print("Starting the control plane, the scheduler and the nodes ...")
        cluster = stack.enter_context(Cluster(folder))
        cluster.add_nodes(NODES)
        its = DemoCluster(cluster, demo, stack.enter_context(FakeServing(patience_s=_PATIENCE_S)))
        console.print("Starting Prometheus and its adapter ...")
        metrics_port, optimizer_port = free_port(), free_port()
        its.prometheus = cluster.start_prometheus(
            _scrape_configs(its.serving.target, metrics_port, demo.system_namespace)
        )
        console.print("Installing the chart, the variants and their HPAs ...")
        optimizer_url = f"http://127.0.0.1:{optimizer_port}"
        for path in sorted((_CHART / "crds").glob("*.yaml")):
            cluster.apply_file(path)
        for document in demo.objects():
            cluster.apply(document)
        for document in chart_objects(demo.system_namespace, its.prometheus, optimizer_url):
            cluster.apply(document)
        its.serving.follow(cluster.api(), demo.servers())
        console.print("Starting fleetopt's service and controller ...")
        its.daemons = [_service(folder, optimizer_port), _controller(cluster, demo, metrics_port)]
        for daemon in its.daemons:
            daemon.start()
            stack.callback(daemon.stop)
        wait_until(lambda: its.look() is not None, "everything answers", daemons=its.daemons)
        yield its


def chart_objects(namespace: str, prometheus_url: str, optimizer_url: str) -> list[dict[str, object]]:
    """Render the chart with the demo's values; its Deployments run as processes instead."""
    command = [binary("helm"), "template", _RELEASE, str(_CHART), "--namespace", namespace]
    command += ["--values", str(VALUES), "--set", f"optimizerUrl={optimizer_url}"]
    command += ["--set", f"settings.PROMETHEUS_BASE_URL={prometheus_url}"]
    rendered = subprocess.run(command, check=False, capture_output=True, text=True)
    if rendered.returncode:
        raise ComponentError(f"helm template: {rendered.stderr}")
    documents = [document for document in yaml.safe_load_all(rendered.stdout) if document]
    return [document for document in documents if document["kind"] != "Deployment"]


def _scrape_configs(serving: str, metrics_port: int, namespace: str) -> list[dict[str, object]]:
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


def _tell(its: DemoCluster, story: Story, console: Console, story_only: bool) -> None:
    kubectl = find_binary("kubectl") or "kubectl"
    hint = (
        f"Another terminal: {kubectl} --kubeconfig {its.kubeconfig} get va,hpa,deploy -n {its.demo.namespace}"
    )
    console.print(hint, soft_wrap=True)
    assert story.phase
    its.set_rates(dict(story.phase.rates_rps))
    start_s = time.monotonic()
    block_at_s = 0.0
    live = Live(console=console, auto_refresh=False) if console.is_terminal else None
    with live or ExitStack():
        while True:
            its.check()
            seen, now_s = its.look(), time.monotonic() - start_s
            if seen is not None:
                is_new = story.look(seen, now_s)
                if is_new and story.phase:
                    its.set_rates(dict(story.phase.rates_rps))
                if live:
                    live.update(screen(story, seen, its.demo, now_s, "Ctrl-C ends it."), refresh=True)
                elif is_new or now_s >= block_at_s:
                    block_at_s = now_s + _BLOCK_EVERY_S
                    console.print(screen(story, seen, its.demo, now_s, ""))
            if story_only and story.phase is None:
                return
            time.sleep(_EVERY_S)


if __name__ == "__main__":
    sys.exit(main())

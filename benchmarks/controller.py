"""What a pass of the controller costs on a large cluster: real API server, Prometheus and service.

    python benchmarks/controller.py [--variants 1000] [--namespaces 20] [--passes 5] [--write]

Makes the objects of a cluster (each variant with a Deployment of two pods, nodes of eight GPUs, pods of
others), writes vLLM's series into a Prometheus, starts the service and the controller as processes of their
own, the controller under the shipped role, and waits for quiet passes: those in which nothing changes. A pass
lasts from the first request that the API server sees of it until its line in the decision record; writes are
counted in the API server's audit log, queries in Prometheus' own metrics.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import platform
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "deploy" / "cluster"))

from control_plane import ControlPlane  # noqa: E402 - after the path
from processes import Daemon, binary, free_port, missing, wait_until  # noqa: E402

if TYPE_CHECKING:
    from collections.abc import Iterator

SYSTEM, ACCOUNT = "fleetopt-system", "fleetopt-controller"
USER = f"system:serviceaccount:{SYSTEM}:{ACCOUNT}"
DEVICES = {
    "A100": ("nvidia.com", "NVIDIA-A100-PCIE-80GB"),
    "H100": ("nvidia.com", "NVIDIA-H100-80GB-HBM3"),
    "MI300X": ("amd.com", "AMD-MI300X-192GB"),
}
PODS_EACH, CARDS_PER_NODE = 2, 8
INTERVAL_S = 10.0
READS = frozenset(("get", "list", "watch"))

GOAL_SECONDS, GOAL_QUERIES, GOAL_WRITES, GOAL_MB = 3.0, 12, 0, 300.0


# --- the cluster ---


@dataclass(frozen=True)
class Place:
    """A variant: its number, namespace, name and accelerator."""

    number: int
    namespace: str
    name: str
    accelerator: str

    @property
    def model(self) -> str:
        """Name of the model, which no other variant serves."""
        return f"example/model-{self.number:04d}"


def places(variants: int, namespaces: int) -> list[Place]:
    accelerators = itertools.cycle(DEVICES)
    return [
        Place(i, f"team-{i % namespaces:02d}", f"model-{i:04d}", next(accelerators)) for i in range(variants)
    ]


def named(kind: str, version_: str, name: str, namespace: str = "", **rest: Any) -> dict[str, Any]:
    labels = rest.pop("labels", {})
    metadata: dict[str, Any] = {"name": name, "labels": labels}
    if namespace:
        metadata["namespace"] = namespace
    return {"apiVersion": version_, "kind": kind, "metadata": metadata, **rest}


def pod_spec(place: Place) -> dict[str, Any]:
    """As large as that of a model server usually is: a few kB."""
    vendor, product = DEVICES[place.accelerator]
    gpus = {f"{vendor}/gpu": "1"}
    probe = {"httpGet": {"path": "/health", "port": 8000}, "periodSeconds": 10, "failureThreshold": 3}
    return {
        "nodeSelector": {f"{vendor}/gpu.product": product},
        "containers": [
            {
                "name": "vllm",
                "image": "vllm/vllm-openai:v0.10.0",
                "args": [f"--model={place.model}", "--max-num-seqs=4", "--port=8000"],
                "env": [
                    {"name": f"VLLM_SETTING_{i:02d}", "value": "as the cluster has it"} for i in range(20)
                ],
                "ports": [{"name": "http", "containerPort": 8000}],
                "resources": {"limits": gpus, "requests": gpus | {"cpu": "4", "memory": "32Gi"}},
                "livenessProbe": probe,
                "readinessProbe": probe,
                "volumeMounts": [
                    {"name": "cache", "mountPath": "/root/.cache"},
                    {"name": "shm", "mountPath": "/dev/shm"},
                ],
            }
        ],
        "volumes": [{"name": "cache", "emptyDir": {}}, {"name": "shm", "emptyDir": {"medium": "Memory"}}],
        "tolerations": [{"key": f"{vendor}/gpu", "operator": "Exists", "effect": "NoSchedule"}],
    }


def running(address: str) -> dict[str, Any]:
    kinds = ("PodReadyToStartContainers", "Initialized", "Ready", "ContainersReady", "PodScheduled")
    container = {"name": "vllm", "ready": True, "restartCount": 0, "image": "i", "imageID": "i" * 80}
    return {
        "phase": "Running",
        "podIP": address,
        "conditions": [{"type": kind, "status": "True"} for kind in kinds],
        "containerStatuses": [container],
    }


def variant(place: Place) -> dict[str, Any]:
    law = {"accCount": 1, "alpha": "20.58", "beta": "0.41", "maxBatchSize": 4}
    return named(
        "VariantAutoscaling",
        "llmd.ai/v1alpha1",
        place.name,
        place.namespace,
        labels={"inference.optimization/acceleratorName": place.accelerator},
        spec={
            "modelID": place.model,
            "modelProfile": {"accelerators": [{"acc": accelerator, **law} for accelerator in DEVICES]},
            "maxReplicas": 10,
        },
    )


def deployment(place: Place) -> dict[str, Any]:
    labels = {"app": place.name}
    return named(
        "Deployment",
        "apps/v1",
        place.name,
        place.namespace,
        labels=labels,
        spec={
            "replicas": PODS_EACH,
            "selector": {"matchLabels": labels},
            "template": {"metadata": {"labels": labels}, "spec": pod_spec(place)},
        },
        status={"replicas": PODS_EACH, "readyReplicas": PODS_EACH, "observedGeneration": 1},
    )


def nodes_for(found: list[Place]) -> dict[str, list[str]]:
    """Names of the nodes of each accelerator, a tenth more than its pods need."""
    needed = {a: PODS_EACH * sum(place.accelerator == a for place in found) for a in DEVICES}
    return {
        a: [f"{a.lower()}-{i:03d}" for i in range(-(-cards * 11 // 10 // CARDS_PER_NODE) + 1)]
        for a, cards in needed.items()
    }


def objects(found: list[Place]) -> Iterator[dict[str, Any]]:
    """Everything there is but the settings, namespaces first."""
    for namespace in sorted({place.namespace for place in found}):
        yield named("Namespace", "v1", namespace)
    nodes = nodes_for(found)
    for accelerator, names in nodes.items():
        vendor, product = DEVICES[accelerator]
        for name in names:
            cards = {f"{vendor}/gpu": str(CARDS_PER_NODE), "cpu": "96", "memory": "1Ti"}
            ready = {
                "allocatable": cards,
                "capacity": cards,
                "conditions": [{"type": "Ready", "status": "True"}],
            }
            yield named("Node", "v1", name, labels={f"{vendor}/gpu.product": product}, status=ready)
    free = {a: itertools.cycle(names) for a, names in nodes.items()}
    for place in found:
        yield variant(place)
        yield deployment(place)
        for i in range(PODS_EACH):
            yield named(
                "Pod",
                "v1",
                f"{place.name}-{i}",
                place.namespace,
                labels={"app": place.name},
                spec=pod_spec(place) | {"nodeName": next(free[place.accelerator])},
                status=running(f"10.{place.number // 200}.{place.number % 200}.{i}"),
            )
    for i, name in enumerate(itertools.chain(*nodes.values())):
        # What runs on every node: agents, the network, the device plugin.
        for agent in range(3):
            spec = {"nodeName": name, "containers": [{"name": "c", "image": "i"}]}
            status = running(f"10.9.{i % 200}.{agent}")
            yield named("Pod", "v1", f"agent-{agent}-{i:03d}", "team-00", spec=spec, status=status)


def config_maps(found: list[Place], environ: dict[str, str]) -> Iterator[dict[str, Any]]:
    prices = {
        name: json.dumps({"device": device, "cost": cost})
        for (name, (_, device)), cost in zip(DEVICES.items(), ("40.00", "100.00", "65.00"), strict=True)
    }
    classes = {}
    for priority, name in enumerate(("Premium", "Standard", "Batch"), start=1):
        data = [
            {"model": p.model, "slo-tpot": 24, "slo-ttft": 500} for p in found if p.number % 3 == priority - 1
        ]
        classes[f"{name.lower()}.yaml"] = json.dumps({"name": name, "priority": priority, "data": data})
    settings = environ | {"GLOBAL_OPT_INTERVAL": f"{INTERVAL_S:g}s"}
    for name, data in (
        ("accelerator-unit-costs", prices),
        ("service-classes-config", classes),
        ("fleetopt-variantautoscaling-config", settings),
    ):
        yield named("ConfigMap", "v1", name, SYSTEM, data=data)


def fill(plane: ControlPlane, found: list[Place]) -> int:
    """Make the objects; returns how many."""
    plane.apply_file(ROOT / "deploy" / "crd" / "variantautoscalings.llmd.ai.yaml")
    plane.apply_file(ROOT / "deploy" / "kustomize" / "namespace.yaml")
    plane.apply_file(ROOT / "deploy" / "kustomize" / "rbac.yaml")
    everything = list(objects(found))
    spaces = [thing for thing in everything if thing["kind"] == "Namespace"]
    for thing in [*spaces, everything[-1], variant(found[0])]:
        # The kinds are looked up here, before many threads do.
        plane.apply(thing)
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(plane.apply, everything[len(spaces) :]))
    return len(everything)


# --- Prometheus ---


def write_history(found: list[Place], path: Path, now_s: float) -> int:
    """Write what vLLM's pods say, from three minutes ago until far enough ahead; returns how many series."""
    steps = [now_s + 15.0 * step for step in range(-12, 61)]
    per_pod_rps, count = 20.0 / 60.0, 0
    # Value of each series as level + slope * seconds.
    rows = {
        "vllm:request_success_total": (0.0, per_pod_rps),
        "vllm:num_requests_running": (2.0, 0.0),
        "vllm:num_requests_waiting": (0.0, 0.0),
        "vllm:request_prompt_tokens_sum": (0.0, 128.0 * per_pod_rps),
        "vllm:request_prompt_tokens_count": (0.0, per_pod_rps),
        "vllm:request_generation_tokens_sum": (0.0, 178.0 * per_pod_rps),
        "vllm:request_generation_tokens_count": (0.0, per_pod_rps),
        "vllm:time_to_first_token_seconds_sum": (0.0, 0.12 * per_pod_rps),
        "vllm:time_to_first_token_seconds_count": (0.0, per_pod_rps),
        "vllm:time_per_output_token_seconds_sum": (0.0, 178.0 * 0.0215 * per_pod_rps),
        "vllm:time_per_output_token_seconds_count": (0.0, 178.0 * per_pod_rps),
    }
    with path.open("w") as file:
        for name, (level, slope) in sorted(rows.items()):
            values = [f"{level + slope * (at_s - steps[0] + 3600.0):.6g} {at_s:.0f}\n" for at_s in steps]
            for place in found:
                for i in range(PODS_EACH):
                    labels = (
                        f'model_name="{place.model}",namespace="{place.namespace}",pod="{place.name}-{i}"'
                    )
                    series = f"{name}{{{labels}}} "
                    file.writelines(series + value for value in values)
                    count += 1
        file.write("# EOF\n")
    return count


def start_prometheus(folder: Path, found: list[Place]) -> tuple[Daemon, str, int]:
    folder.mkdir()
    text, data = folder / "history.om", folder / "data"
    series = write_history(found, text, time.time())
    command = [
        binary("promtool"),
        "tsdb",
        "create-blocks-from",
        "openmetrics",
        "--quiet",
        str(text),
        str(data),
    ]
    subprocess.run(command, check=True, capture_output=True)
    text.unlink()
    (folder / "prometheus.yml").write_text("{}")
    port = free_port()
    daemon = Daemon(
        [
            binary("prometheus"),
            f"--config.file={folder / 'prometheus.yml'}",
            f"--storage.tsdb.path={data}",
            f"--web.listen-address=127.0.0.1:{port}",
        ],
        folder / "prometheus.log",
    )
    daemon.start()
    url = f"http://127.0.0.1:{port}"
    wait_until(lambda: get(f"{url}/-/ready") != "", "Prometheus is ready", daemons=[daemon])
    return daemon, url, series


def queries_of(url: str) -> int:
    """How many queries Prometheus has answered."""
    lines = get(f"{url}/metrics").splitlines()
    # The handler of instant queries; what the API is asked else is counted elsewhere.
    asked = [
        line
        for line in lines
        if line.startswith("prometheus_http_requests_total{") and "/api/v1/query" in line
    ]
    return sum(int(float(line.rsplit(" ", 1)[1])) for line in asked)


def get(url: str) -> str:
    try:
        with urllib.request.urlopen(url, timeout=10.0) as answer:
            return str(answer.read().decode())
    except urllib.error.URLError:
        return ""


# --- the measurement ---


@dataclass(frozen=True)
class Pass:
    """A pass as its record has it, and when its line was there."""

    record: dict[str, Any]
    end_unix_s: float

    @property
    def solve_s(self) -> float:
        """Time that the service took."""
        response = self.record["response"] or {"report": {"seconds": {"total": 0.0}}}
        return float(response["report"]["seconds"]["total"])


class Record:
    """Follows a decision record line by line."""

    def __init__(self, path: Path) -> None:
        self._path, self._rest, self._at = path, b"", 0

    def next(self, daemons: list[Daemon], limit_s: float = 300.0) -> Pass:
        """Wait for the next pass."""
        end_s = time.monotonic() + limit_s
        while b"\n" not in self._rest:
            for daemon in daemons:
                daemon.check()
            if time.monotonic() > end_s:
                raise SystemExit(f"no pass within {limit_s:g} s:\n" + daemons[-1].tail())
            if self._path.exists():
                with self._path.open("rb") as file:
                    file.seek(self._at)
                    new = file.read()
                self._at += len(new)
                self._rest += new
            if b"\n" not in self._rest:
                time.sleep(0.02)
        seen_s = time.time()
        line, _, self._rest = self._rest.partition(b"\n")
        return Pass(json.loads(line), seen_s)


def received_unix_s(event: dict[str, Any]) -> float:
    text = event["requestReceivedTimestamp"].replace("Z", "+00:00")
    return datetime.fromisoformat(text).timestamp()


def requests_of(plane: ControlPlane) -> list[dict[str, Any]]:
    """The controller's requests but those of its Lease, the earliest first."""
    events = [e for e in plane.audit() if e["user"]["username"] == USER and "objectRef" in e]
    events = [
        e for e in events if e["objectRef"]["resource"] != "leases" and e["stage"] == "ResponseComplete"
    ]
    return sorted(events, key=received_unix_s)


def started_unix_s(events: list[dict[str, Any]], before_unix_s: float) -> float:
    """When the last list of the variants began before a time: the start of the pass that ended then."""
    return max(
        received_unix_s(e)
        for e in events
        if e["verb"] == "list"
        and e["objectRef"]["resource"] == "variantautoscalings"
        and received_unix_s(e) < before_unix_s
    )


def peak_mb(pid: int) -> float:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) / 1024.0
    raise SystemExit("this system does not say how much memory a process has used")


def with_children(pid: int) -> list[int]:
    """Process numbers of a process and of those that it started."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [pid, *(found for child in children for found in with_children(int(child)))]


def cpu_s(pid: int) -> float:
    """Processor time that a process has used."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def measure(folder: Path, variants: int, namespaces: int, passes: int) -> list[tuple[str, str, str]]:
    """Return the rows of the table: what, how much, goal."""
    found = places(variants, namespaces)
    with ControlPlane(folder / "plane") as plane:
        say("making the objects")
        made = fill(plane, found)
        say("writing the history")
        prometheus, prometheus_url, series = start_prometheus(folder / "prometheus", found)
        daemons = [prometheus]
        try:
            service, service_url = start_service(folder)
            daemons.append(service)
            environ = {"PROMETHEUS_BASE_URL": prometheus_url, "FLEETOPT_OPTIMIZER_URL": service_url}
            for document in config_maps(found, environ):
                plane.apply(document)
            say("starting the controller")
            rows = follow(folder, plane, daemons, service, prometheus_url, passes)
        finally:
            for daemon in reversed(daemons):
                daemon.stop()
    size = f"{variants} variants in {namespaces} namespaces, {made} objects, {series} series"
    return [("cluster", size, ""), *rows]


def start_service(folder: Path) -> tuple[Daemon, str]:
    port = free_port()
    fleetopt = str(Path(sys.executable).with_name("fleetopt"))
    command = [
        fleetopt,
        "serve",
        "--port",
        str(port),
        "--workers",
        "1",
        "--log-level",
        "warning",
    ]
    daemon = Daemon(command, folder / "service.log")
    daemon.start()
    url = f"http://127.0.0.1:{port}"
    wait_until(lambda: get(f"{url}/readyz") != "", "the service is ready", daemons=[daemon])
    return daemon, url


def follow(
    folder: Path,
    plane: ControlPlane,
    daemons: list[Daemon],
    service: Daemon,
    prometheus_url: str,
    passes: int,
) -> list[tuple[str, str, str]]:
    kubeconfig = plane.kubeconfig(folder / "kubeconfig", plane.token(ACCOUNT, SYSTEM))
    probes, record = free_port(), Record(folder / "record.jsonl")
    controller = Daemon(
        [
            sys.executable,
            "-m",
            "controller",
            f"--kubeconfig={kubeconfig}",
            f"--system-namespace={SYSTEM}",
            "--leader-elect=true",
            "--metrics-bind-address=127.0.0.1:0",
            "--metrics-secure=false",
            f"--health-probe-bind-address=127.0.0.1:{probes}",
            f"--record={folder / 'record.jsonl'}",
        ],
        folder / "controller.log",
    )
    daemons.append(controller)
    start_s = time.time()
    controller.start()
    wait_until(
        lambda: get(f"http://127.0.0.1:{probes}/readyz") != "", "the controller is ready", 120.0, daemons
    )
    ready_s = time.time() - start_s
    first = record.next(daemons)
    first_s = first.end_unix_s - start_s
    say(f"first pass after {first_s:.1f} s; waiting for quiet ones")

    quiet: list[Pass] = []
    asked, used = [queries_of(prometheus_url)], [cpu_s(controller.pid)]
    while len(quiet) < passes:
        after = record.next(daemons)
        asked.append(queries_of(prometheus_url))
        used.append(cpu_s(controller.pid))
        if after.record["problems"]:
            raise SystemExit("the pass has problems: " + "; ".join(after.record["problems"][:3]))
        # The watches of the start wake the second pass at once; it settles what the first one wrote.
        if len(asked) > 2:
            quiet.append(after)
        say(f"pass {len(asked)}: {after.record['seconds']}")
    events = requests_of(plane)
    starts = [started_unix_s(events, each.end_unix_s) for each in quiet]
    begin, end = starts[0], quiet[-1].end_unix_s
    writes = [e for e in events if e["verb"] not in READS and begin <= received_unix_s(e) <= end]
    wrote_first = [e for e in events if e["verb"] not in READS and received_unix_s(e) <= first.end_unix_s]
    whole = [each.end_unix_s - start for each, start in zip(quiet, starts, strict=True)]
    apart = [seconds - each.solve_s for seconds, each in zip(whole, quiet, strict=True)]
    queries = max(b - a for a, b in itertools.pairwise(asked))
    # Between the ends of two quiet passes, the watches and the Lease included.
    spent = [b - a for a, b in itertools.pairwise(used[-len(quiet) - 1 :])]
    peak = peak_mb(controller.pid)
    of_service = sum(peak_mb(pid) for pid in with_children(service.pid))
    say("ending the controller")
    os.kill(controller.pid, signal.SIGTERM)

    def median(stage: str) -> str:
        return f"{statistics.median(each.record['seconds'].get(stage, 0.0) for each in quiet):.2f} s"

    stages = ", ".join(f"{stage} {median(stage)}" for stage in quiet[-1].record["seconds"])
    return [
        ("quiet pass apart from the solve", f"{statistics.median(apart):.2f} s", f"< {GOAL_SECONDS:g} s"),
        ("its stages, with the service's answer", stages, ""),
        ("whole quiet pass, with the record", f"{statistics.median(whole):.2f} s", ""),
        ("processor time of the controller in it", f"{statistics.median(spent):.2f} s", ""),
        ("service", f"{statistics.median(each.solve_s for each in quiet):.2f} s", ""),
        ("Prometheus queries in a pass", str(queries), f"<= {GOAL_QUERIES}"),
        (f"writes in {len(quiet)} quiet passes", str(len(writes)), str(GOAL_WRITES)),
        ("peak memory of the controller", f"{peak:.0f} MB", f"< {GOAL_MB:g} MB"),
        ("peak memory of the service, its worker included", f"{of_service:.0f} MB", ""),
        ("start until ready", f"{ready_s:.1f} s", ""),
        (f"start until the first pass is done, {len(wrote_first)} writes", f"{first_s:.1f} s", ""),
    ]


def say(text: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {text}", file=sys.stderr, flush=True)


def render(rows: list[tuple[str, str, str]], command: str) -> str:
    named_versions = ", ".join(f"{name} {version(name)}" for name in ("kubernetes", "prometheus-api-client"))
    server = subprocess.run(
        [binary("kube-apiserver"), "--version"], capture_output=True, text=True, check=True
    )
    prometheus = subprocess.run(
        [binary("prometheus"), "--version"], capture_output=True, text=True, check=True
    )
    seen = "Prometheus " + (prometheus.stdout or prometheus.stderr).split()[2]
    machine = (
        f"{datetime.now(UTC):%Y-%m-%d}: Python {platform.python_version()}, {named_versions}, "
        f"{server.stdout.strip()}, {seen}, {os.cpu_count()} cores ({platform.machine()}), "
        f"load {os.getloadavg()[0]:.1f} at the end."
    )
    lines = ["# The controller on a large cluster", "", f"`{command}`", "", machine, ""]
    lines += ["| | measured | goal |", "|---|---|---|"]
    lines += [f"| {what} | {much} | {goal} |" for what, much, goal in rows]
    lines += [
        "",
        "Medians of the quiet passes. A pass lasts from its first request at the API server until its line",
        "in the decision record; the service's own time is taken off where it says so. API server, etcd,",
        "Prometheus and service share the cores with the controller.",
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("--variants", type=int, default=1000)
    arguments.add_argument("--namespaces", type=int, default=20)
    arguments.add_argument("--passes", type=int, default=5, help="quiet passes to measure")
    arguments.add_argument("--write", action="store_true", help="write benchmarks/CONTROLLER.md")
    options = arguments.parse_args()
    absent = ControlPlane.binaries_missing() + missing(["prometheus", "promtool"])
    if absent:
        raise SystemExit("needed: " + "; ".join(absent))
    folder = Path(tempfile.mkdtemp(prefix="fleetopt-bench-"))
    try:
        (folder / "plane").mkdir()
        rows = measure(folder, options.variants, options.namespaces, options.passes)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    text = render(rows, "python " + " ".join([str(Path(sys.argv[0])), *sys.argv[1:]]))
    print(text, end="")
    if options.write:
        (ROOT / "benchmarks" / "CONTROLLER.md").write_text(text)


if __name__ == "__main__":
    main()

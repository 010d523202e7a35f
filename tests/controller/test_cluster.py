"""The controller on a real API server, with the real service and a real Prometheus, as its own account."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import yaml
from cluster_tools import (
    DEPLOY,
    SYSTEM,
    Admin,
    ControlPlane,
    control_plane,
    deployment,
    needs_cluster,
    node,
    pod,
)
from controller_tools import CLASSES, MODEL, profile, va
from kubernetes import client
from prometheus_tools import free_port, get, needs_prometheus, prometheus, wait_until

from controller import kube
from controller.client import HttpOptimizer
from controller.collect import View
from controller.crd import parse_variant
from controller.errors import ClusterError
from controller.loop import Edges, Now, Outcome, State, reconcile
from controller.metrics import VariantMetrics
from controller.prometheus import connect
from solver import cli

pytestmark = [needs_cluster, needs_prometheus]

A100, H100 = "NVIDIA-A100-PCIE-80GB", "NVIDIA-H100-80GB-HBM3"
SPACES = ("old", "new", "low", "busy", "gone", "sets", "flow", "race", "own")


def history(now_s: float) -> list[tuple[str, float, float]]:
    """Every namespace has 40 requests/min of 178 tokens, but ``busy``, which has three times as many."""
    found = []
    for space in SPACES:
        rate = 2.0 if space == "busy" else 40.0 / 60.0
        labels = f'{{model_name="{MODEL}",namespace="{space}"}}'
        # It goes on into the future: the tests take a while.
        for step in range(-20, 40):
            at_s, done = now_s + 15.0 * step, rate * (600.0 + 15.0 * step)
            values = {
                "vllm:request_success_total": done,
                "vllm:num_requests_running": 2.0,
                "vllm:num_requests_waiting": 0.0,
                "vllm:request_generation_tokens_sum": 178.0 * done,
                "vllm:request_generation_tokens_count": done,
            }
            found += [(f"{name}{labels}", at_s, value) for name, value in values.items()]
    return found


@pytest.fixture(scope="module")
def prometheus_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with prometheus(tmp_path_factory.mktemp("prometheus"), history=history(time.time() - 1.0)) as url:
        yield url


@pytest.fixture(scope="module")
def plane(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ControlPlane]:
    with control_plane(tmp_path_factory.mktemp("plane")) as running:
        admin = Admin(running)
        admin.prepare()
        for document in (*documents("rbac.yaml"), *documents("scale/rbac.yaml")):
            admin.apply(document)
        for space in SPACES:
            admin.namespace(space)
        admin.apply(node("a", A100))
        admin.apply(node("h", H100))
        yield running


def documents(path: str) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all((DEPLOY / "kustomize" / path).read_text()))


@pytest.fixture(scope="module")
def admin(plane: ControlPlane) -> Admin:
    return Admin(plane)


@pytest.fixture(scope="module")
def account(plane: ControlPlane, admin: Admin) -> str:
    """Token of the controller's own service account."""
    request = client.AuthenticationV1TokenRequest(
        spec=client.V1TokenRequestSpec(audiences=["https://kubernetes.default.svc"])
    )
    answer = admin.core.create_namespaced_service_account_token("fleetopt-controller", SYSTEM, request)
    assert answer.status
    return str(answer.status.token)


class Controller:
    """Passes over one namespace, one minute apart, under the controller's account."""

    def __init__(self, plane: ControlPlane, token: str, space: str, optimizer: str, prometheus: str) -> None:
        self.kubernetes = kube.Kubernetes(plane.api(token), SYSTEM, space)
        self.metrics = VariantMetrics()
        self.minute, self.state = 0, State()
        environ = {"PROMETHEUS_BASE_URL": prometheus, "FLEETOPT_SCALE_DOWN_WINDOW": "0s"}
        self.edges = Edges(
            reader=self.kubernetes,
            writer=self.kubernetes,
            publisher=self.metrics,
            connect=connect,
            optimizer=lambda _: HttpOptimizer(optimizer, 20.0),
            environ={**environ, "FLEETOPT_ACTUATE": "scale"},
        )

    def step(self) -> Outcome:
        self.minute += 1
        now = Now(60.0 * self.minute, datetime(2026, 1, 1, 0, self.minute, tzinfo=UTC))
        outcome = reconcile(self.edges, self.state, now)
        self.state = outcome.state
        return outcome


def conditions(document: dict[str, Any]) -> dict[str, str]:
    return {c["type"]: f"{c['status']} {c['reason']}" for c in document["status"]["conditions"]}


def bare(document: dict[str, Any]) -> dict[str, Any]:
    """As a user applies it: without what the server fills in."""
    metadata = {k: v for k, v in document["metadata"].items() if k not in ("uid", "generation")}
    return {k: v for k, v in document.items() if k != "status"} | {"metadata": metadata}


@pytest.fixture
def controller(
    request: pytest.FixtureRequest, plane: ControlPlane, account: str, optimizer_url: str, prometheus_url: str
) -> Controller:
    return Controller(plane, account, request.param, optimizer_url, prometheus_url)


in_namespace = lambda space: pytest.mark.parametrize("controller", [space], indirect=True)  # noqa: E731 - a mark


@in_namespace("old")
def test_object_of_2025_as_it_was_deployed(controller: Controller, admin: Admin) -> None:
    admin.apply(deployment("vllm", "old"))
    admin.apply(bare(va(namespace="old", profiles=[profile("A100"), profile("H100"), profile("G2")])))
    outcome = controller.step()

    assert outcome.problems == ()
    assert admin.replicas("old", "vllm") == 2
    status = admin.variant("old", "vllm")["status"]
    assert status["desiredOptimizedAlloc"] == {
        "accelerator": "A100",
        "numReplicas": 2,
        "lastRunTime": "2026-01-01T00:01:00Z",
    }
    assert status["currentAlloc"]["load"]["avgOutputTokens"] == "178.00"
    assert conditions(admin.variant("old", "vllm")) == {
        "MetricsAvailable": "True MetricsFound",
        "OptimizationReady": "True OptimizationSucceeded",
        "TargetResolved": "True TargetFound",
        "InventoryKnown": "True NodesRead",
    }
    events = admin.core.list_namespaced_event("old").items
    assert [(e.reason, e.involved_object.name) for e in events] == [("Scaling", "vllm")]


@in_namespace("new")
def test_objects_of_2026_with_two_accelerators_share_a_load(controller: Controller, admin: Admin) -> None:
    profiles = f"- {{name: {MODEL}, acc: A100, alpha: 20.58, beta: 0.41, maxBatchSize: 4}}\n"
    admin.config_map("model-profiles", {"m": profiles + profiles.replace("A100", "H100")})
    admin.config_map("accelerator-capacity", {"A100": "1"})
    for name, product in (("on-a100", A100), ("on-h100", H100)):
        ref = {"apiVersion": "apps/v1", "kind": "Deployment", "name": f"{name}-decode"}
        selector = {"nvidia.com/gpu.product": product}
        admin.apply(deployment(f"{name}-decode", "new", nodeSelector=selector))
        admin.apply(bare(va(name, namespace="new", label="", scaleTargetRef=ref)))
    try:
        controller.step()
    finally:
        admin.core.delete_namespaced_config_map("accelerator-capacity", SYSTEM)

    assert (admin.replicas("new", "on-a100-decode"), admin.replicas("new", "on-h100-decode")) == (1, 1)
    desired = [
        admin.variant("new", name)["status"]["desiredOptimizedAlloc"] for name in ("on-a100", "on-h100")
    ]
    assert [(d["accelerator"], d["numReplicas"]) for d in desired] == [("A100", 1), ("H100", 1)]


@in_namespace("low")
def test_pass_without_news_writes_nothing(controller: Controller, admin: Admin) -> None:
    admin.apply(deployment("vllm", "low"))
    admin.apply(bare(va(namespace="low", profiles=[profile("A100")])))
    controller.step()
    controller.step()
    before = admin.variant("low", "vllm")["metadata"]["resourceVersion"]
    controller.step()
    assert admin.variant("low", "vllm")["metadata"]["resourceVersion"] == before


@in_namespace("busy")
def test_gpus_of_another_team_are_not_ours(controller: Controller, admin: Admin) -> None:
    admin.apply(deployment("vllm", "busy"))
    admin.apply(bare(va(namespace="busy", profiles=[profile("A100")])))
    controller.step()
    assert admin.replicas("busy", "vllm") == 5

    admin.namespace("training")
    admin.apply(pod("theirs", "training", "a", 5, app="training"))
    try:
        controller.step()
    finally:
        admin.core.delete_namespaced_pod("theirs", "training", grace_period_seconds=0)
    assert admin.replicas("busy", "vllm") == 3
    assert conditions(admin.variant("busy", "vllm"))["OptimizationReady"] == "True DemandUnserved"


@in_namespace("gone")
def test_targets_and_variants_that_go_and_come(controller: Controller, admin: Admin) -> None:
    document = bare(va(namespace="gone", profiles=[profile("A100")]))
    admin.apply(document)
    controller.step()
    assert conditions(admin.variant("gone", "vllm"))["TargetResolved"] == "False TargetNotFound"

    admin.apply(deployment("vllm", "gone"))
    controller.step()
    assert conditions(admin.variant("gone", "vllm"))["TargetResolved"] == "True TargetFound"
    assert admin.replicas("gone", "vllm") == 2

    # Deleted during a pass, and made anew: what was decided about the old object is not written to the new.
    read = parse_variant(admin.variant("gone", "vllm"))
    names = ("llmd.ai", "v1alpha1", "gone", "variantautoscalings", "vllm")
    admin.custom.delete_namespaced_custom_object(*names)
    controller.kubernetes.patch_status(read, {"status": {"actuation": {"applied": False}}})
    admin.apply(document)
    controller.kubernetes.patch_status(read, {"status": {"actuation": {"applied": False}}})
    assert "status" not in admin.variant("gone", "vllm")
    controller.step()
    assert conditions(admin.variant("gone", "vllm"))["OptimizationReady"] == "True OptimizationSucceeded"


class Interrupted:
    """A reader after whose reading something happens in the cluster."""

    def __init__(self, kubernetes: kube.Kubernetes, happens: Callable[[], object]) -> None:
        self._kubernetes, self._happens = kubernetes, happens

    def read(self) -> View:
        view = self._kubernetes.read()
        self._happens()
        return view


@in_namespace("race")
def test_conflict_on_a_status_and_a_variant_deleted_during_a_pass(
    controller: Controller, admin: Admin
) -> None:
    document = bare(va(namespace="race", profiles=[profile("A100")]))
    admin.apply(deployment("vllm", "race"))
    admin.apply(document)
    edges = controller.edges

    # Changed by its user meanwhile: what was decided about the old text is not written to the new.
    document["spec"]["maxReplicas"] = 1
    controller.edges = replace(
        edges, reader=Interrupted(controller.kubernetes, lambda: admin.apply(document))
    )
    assert controller.step().problems == ()
    assert "conditions" not in admin.variant("race", "vllm").get("status", {})
    controller.edges = edges
    controller.step()
    assert conditions(admin.variant("race", "vllm"))["OptimizationReady"] == "True DemandUnserved"
    assert admin.replicas("race", "vllm") == 1

    names = ("llmd.ai", "v1alpha1", "race", "variantautoscalings", "vllm")
    gone = Interrupted(controller.kubernetes, lambda: admin.custom.delete_namespaced_custom_object(*names))
    controller.edges = replace(edges, reader=gone)
    assert controller.step().problems == ()
    controller.edges = edges
    assert controller.step().plan.decisions == ()
    assert admin.replicas("race", "vllm") == 1


@in_namespace("own")
def test_target_that_owns_its_variant(controller: Controller, admin: Admin, plane: ControlPlane) -> None:
    # Only with the setting, and with a rule that the shipped role has only then.
    controller.kubernetes = kube.Kubernetes(plane.api(), SYSTEM, "own")
    environ = {**controller.edges.environ, "FLEETOPT_OWNER_REFERENCE": "true"}
    controller.edges = replace(
        controller.edges, reader=controller.kubernetes, writer=controller.kubernetes, environ=environ
    )
    admin.apply(deployment("vllm", "own"))
    document = bare(va(namespace="own", profiles=[profile("A100")]))
    other = {"apiVersion": "v1", "kind": "ConfigMap", "name": "other", "uid": "c1"}
    document["metadata"]["ownerReferences"] = [other]
    admin.apply(document)

    def owners() -> list[tuple[str, str, bool]]:
        found = admin.variant("own", "vllm")["metadata"]["ownerReferences"]
        return sorted((o["kind"], o["uid"], o.get("controller", False)) for o in found)

    def uid() -> str:
        found = admin.custom.get_namespaced_custom_object("apps", "v1", "own", "deployments", "vllm")
        return str(found["metadata"]["uid"])

    assert controller.step().problems == ()
    assert owners() == [("ConfigMap", "c1", False), ("Deployment", uid(), True)]
    controller.step()
    revision = admin.variant("own", "vllm")["metadata"]["resourceVersion"]
    controller.step()
    assert admin.variant("own", "vllm")["metadata"]["resourceVersion"] == revision

    admin.custom.delete_namespaced_custom_object("apps", "v1", "own", "deployments", "vllm")
    admin.apply(deployment("vllm", "own"))
    controller.step()
    assert owners() == [("ConfigMap", "c1", False), ("Deployment", uid(), True)]

    # A variant that was made anew in between is another: it gets none by a name alone.
    read = parse_variant(admin.variant("own", "vllm"))
    names = ("llmd.ai", "v1alpha1", "own", "variantautoscalings", "vllm")
    admin.custom.delete_namespaced_custom_object(*names)
    controller.kubernetes.own(read, {"apiVersion": "v1", "kind": "ConfigMap", "name": "x", "uid": "c2"})
    assert "own" not in {v["metadata"]["namespace"] for v in admin.variants()}


@in_namespace("sets")
def test_anything_with_a_scale_subresource_is_a_target(
    admin: Admin, plane: ControlPlane, controller: Controller
) -> None:
    document = deployment("set", "sets", replicas=3)
    admin.apply(document | {"kind": "StatefulSet", "spec": document["spec"] | {"serviceName": "s"}})
    ref = {"apiVersion": "apps/v1", "kind": "StatefulSet", "name": "set"}
    admin.apply(bare(va("v", namespace="sets", profiles=[profile("A100")], scaleTargetRef=ref)))
    # The shipped role is for Deployments; an administrator extends it for other kinds.
    controller.kubernetes = kube.Kubernetes(plane.api(), SYSTEM, "sets")
    view = controller.kubernetes.read()
    (variant,) = (parse_variant(v) for v in view.variants)
    target = view.targets[variant.key]
    assert (target["spec"]["replicas"], target["spec"]["selector"]) == (3, {"matchLabels": {"app": "set"}})

    controller.kubernetes.scale(variant, 1)
    assert controller.kubernetes.read().targets[variant.key]["spec"]["replicas"] == 1


@in_namespace("old")
@pytest.mark.parametrize("granted", ["pods", "nodes"])
def test_gpus_that_the_role_does_not_grant_to_read(
    controller: Controller, admin: Admin, granted: str
) -> None:
    role = next(d for d in documents("rbac.yaml") if d["kind"] == "ClusterRole")
    without = [rule for rule in role["rules"] if "nodes" not in rule["resources"]]
    admin.apply(role | {"rules": [*without, {"apiGroups": [""], "resources": [granted], "verbs": ["list"]}]})
    try:
        wait_until(lambda: controller.kubernetes.read().nodes is None)
        controller.step()
    finally:
        admin.apply(role)
    assert conditions(admin.variant("old", "vllm"))["InventoryKnown"] == "False NodesUnreadable"
    wait_until(lambda: controller.kubernetes.read().nodes is not None)


@in_namespace("old")
def test_api_server_that_restarts(controller: Controller, plane: ControlPlane, admin: Admin) -> None:
    controller.step()
    before = admin.variant("old", "vllm"), admin.replicas("old", "vllm")
    plane.stop()
    with pytest.raises(ClusterError, match="does not answer"):
        controller.step()
    plane.start()
    # A server that has just started refuses lists for a moment; the loop tries again with the next pass.
    wait_until(lambda: can_read(controller.kubernetes))
    assert (admin.variant("old", "vllm"), admin.replicas("old", "vllm")) == before
    assert controller.step().problems == ()
    assert (admin.variant("old", "vllm"), admin.replicas("old", "vllm")) == before


def can_read(kubernetes: kube.Kubernetes) -> bool:
    try:
        return bool(kubernetes.read().variants)
    except ClusterError:
        return False


def test_changes_of_a_specification_wake_and_changes_of_a_status_do_not(
    admin: Admin, plane: ControlPlane
) -> None:
    admin.namespace("watched")
    document = bare(va(namespace="watched", profiles=[profile("A100")]))
    admin.apply(document)
    kubernetes = kube.Kubernetes(plane.api(), SYSTEM)
    count, stop = [0], threading.Event()

    def changed() -> None:
        count[0] += 1

    kube.watch_changes(kubernetes, changed, stop)
    # Both watches have told what there is when each has told of this.
    wait_until(lambda: count[0] >= len(admin.variants() or []) + 3)
    variant = parse_variant(admin.variant("watched", "vllm"))
    before = count[0]
    kubernetes.patch_status(variant, {"status": {"actuation": {"applied": True}}})
    admin.apply(document | {"spec": document["spec"] | {"maxReplicas": 3}})
    wait_until(lambda: count[0] > before)
    admin.config_map("service-classes-config", {**CLASSES, "x.yaml": "name: X"})
    wait_until(lambda: count[0] > before + 1)
    stop.set()
    assert count[0] == before + 2
    admin.config_map("service-classes-config", CLASSES)


def test_one_candidate_leads_and_another_takes_over(plane: ControlPlane, admin: Admin, account: str) -> None:
    led: list[str] = []
    ends = {"one": threading.Event(), "two": threading.Event()}

    def work(name: str) -> None:
        led.append(name)
        ends[name].wait(30.0)
        raise RuntimeError("the work ended, so the lease is no longer renewed")

    def candidate(name: str) -> threading.Thread:
        arguments = (plane.api(account), "fleetopt-controller", SYSTEM, name, lambda: work(name))
        times = {"lease_s": 3, "renew_s": 2, "retry_s": 1}
        thread = threading.Thread(target=kube.lead, args=arguments, kwargs=times, daemon=True)
        thread.start()
        return thread

    first = candidate("one")
    wait_until(lambda: led == ["one"])
    second = candidate("two")
    second.join(1.5)
    assert led == ["one"]
    ends["one"].set()
    first.join(10.0)
    assert not first.is_alive()
    wait_until(lambda: led == ["one", "two"])
    ends["two"].set()
    second.join(10.0)
    client.CoordinationV1Api(admin.api).delete_namespaced_lease("fleetopt-controller", SYSTEM)


def run_controller(
    plane: ControlPlane, token: str, folder: Path, environ: dict[str, str], *arguments: str
) -> subprocess.Popen[str]:
    kubeconfig = plane.kubeconfig(folder / "kubeconfig", token)
    return subprocess.Popen(
        [
            sys.executable,
            "-m",
            "controller",
            "--kubeconfig",
            str(kubeconfig),
            "--system-namespace",
            SYSTEM,
            *arguments,
        ],
        env={**os.environ, "COLUMNS": "200", **environ},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_once_and_dry_run_print_what_would_be_done_and_write_nothing(
    plane: ControlPlane,
    admin: Admin,
    account: str,
    tmp_path: Path,
    optimizer_url: str,
    prometheus_url: str,
) -> None:
    admin.apply(deployment("vllm", "flow"))
    admin.apply(bare(va(namespace="flow", profiles=[profile("A100")])))
    before = admin.variant("flow", "vllm")
    environ = {"PROMETHEUS_BASE_URL": prometheus_url, "FLEETOPT_OPTIMIZER_URL": optimizer_url}
    record = tmp_path / "record"
    options = (
        "--once",
        "--dry-run",
        "--actuate",
        "scale",
        "--watch-namespace",
        "flow",
        "--record",
        str(record),
    )
    process = run_controller(plane, account, tmp_path, environ, *options)
    output, errors = process.communicate(timeout=60)

    assert process.returncode == 0, errors
    assert "flow/vllm" in output
    assert "2 replicas for 40.0 requests/min" in output
    assert admin.variant("flow", "vllm") == before
    assert admin.replicas("flow", "vllm") == 1
    (line,) = record.read_text().splitlines()
    assert json.loads(line)["decisions"][0]["desired"] == 2
    assert cli.main(["replay", str(record)]) == 0, "solved again, nothing differs"


def test_process_becomes_ready_acts_and_ends(
    plane: ControlPlane,
    admin: Admin,
    account: str,
    tmp_path: Path,
    optimizer_url: str,
    prometheus_url: str,
) -> None:
    admin.apply(deployment("vllm", "flow"))
    admin.apply(bare(va(namespace="flow", profiles=[profile("A100")])))
    environ = {"PROMETHEUS_BASE_URL": prometheus_url, "FLEETOPT_OPTIMIZER_URL": optimizer_url}
    metrics, probes = free_port(), free_port()
    process = run_controller(
        plane,
        account,
        tmp_path,
        environ,
        "--watch-namespace=flow",
        "--leader-elect=true",
        "--actuate=scale",
        f"--metrics-bind-address=127.0.0.1:{metrics}",
        "--metrics-secure=false",
        f"--health-probe-bind-address=127.0.0.1:{probes}",
    )
    try:
        wait_until(lambda: get(f"http://127.0.0.1:{probes}/readyz") == "ok\n")
        wait_until(lambda: admin.replicas("flow", "vllm") == 2)
        labels = 'accelerator_type="A100",namespace="flow",variant_name="vllm"'
        series = f"inferno_desired_replicas{{{labels}}} 2.0"
        wait_until(lambda: series in get(f"http://127.0.0.1:{metrics}/metrics"))
    finally:
        process.send_signal(signal.SIGTERM)
        _, errors = process.communicate(timeout=30)
    assert process.returncode == 0, errors


def test_every_permission_was_used_and_none_was_missing(plane: ControlPlane, account: str) -> None:
    """The last test: the audit log of all of them, less what was taken away on purpose."""
    user = f"system:serviceaccount:{SYSTEM}:fleetopt-controller"
    used: set[tuple[str, str, str]] = set()
    allowed: set[tuple[str, str]] = set()
    denied: set[tuple[str, str]] = set()
    for line in (plane.folder / "audit.log").read_text().splitlines():
        entry = json.loads(line)
        if entry["user"]["username"] != user or "objectRef" not in entry:
            continue
        what = entry["objectRef"]
        resource = "/".join(part for part in (what["resource"], what.get("subresource")) if part)
        used.add((what.get("apiGroup", ""), resource, entry["verb"]))
        refused = entry.get("responseStatus", {}).get("code") == 403
        (denied if refused else allowed).add((resource, entry["verb"]))
    granted = {
        (group, resource, verb)
        for document in (*documents("rbac.yaml"), *documents("scale/rbac.yaml"))
        if document["kind"] in ("ClusterRole", "Role")
        for rule in document["rules"]
        for group in rule["apiGroups"]
        for resource in rule["resources"]
        for verb in rule["verbs"]
    }
    # A server that starts refuses what it will allow once it has read the roles, so a permission is missing
    # only when it was never granted.
    assert denied - allowed == set()
    assert used <= granted
    assert granted - used == set()

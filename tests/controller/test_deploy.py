"""What is shipped: the API server takes it, the samples work, and copies agree."""

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from cluster_tools import DEPLOY, Admin, binaries, control_plane, deployment, needs_cluster, node
from controller_tools import nodes

from controller.actuate import plan
from controller.analyze import analyze
from controller.collect import View, read_configuration, snapshot_of
from controller.crd import parse_variant
from controller.metrics import PassFigures, VariantMetrics
from controller.snapshot import Signal, Traffic
from controller.stability import Memory

CHART = DEPLOY / "helm" / "fleetopt"
FOREIGN = {"ServiceMonitor", "PrometheusRule", "ScaledObject"}  # resources of other projects


def helm() -> str | None:
    folder = binaries()
    found = shutil.which("helm")
    return found or (str(folder / "helm") if folder and (folder / "helm").is_file() else None)


needs_helm = pytest.mark.skipif(helm() is None, reason="needs helm")


def documents(path: Path) -> list[dict[str, Any]]:
    return [document for document in yaml.safe_load_all(path.read_text()) if document]


def run_helm(*arguments: str) -> str:
    command = helm()
    assert command
    done = subprocess.run([command, *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def admin(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Admin]:
    with control_plane(tmp_path_factory.mktemp("plane")) as running:
        found = Admin(running)
        found.prepare()
        found.namespace("llm")
        yield found


SAMPLES = sorted(
    path for path in (DEPLOY / "samples").glob("*.yaml") if not path.name.endswith("values.yaml")
)
KUSTOMIZE = sorted(p for p in (DEPLOY / "kustomize").rglob("*.yaml") if p.name != "kustomization.yaml")


@needs_cluster
@pytest.mark.parametrize("path", [*SAMPLES, *KUSTOMIZE], ids=lambda path: path.name)
def test_api_server_takes_the_manifests(path: Path, admin: Admin) -> None:
    for document in documents(path):
        if document["kind"] not in FOREIGN:
            admin.apply(document)


def test_kustomize_names_every_file() -> None:
    for folder in (DEPLOY / "kustomize", DEPLOY / "kustomize" / "scale", DEPLOY / "crd"):
        (document,) = documents(folder / "kustomization.yaml")
        named = {name for name in document["resources"] if name.endswith(".yaml")}
        assert named == {path.name for path in folder.glob("*.yaml")} - {"kustomization.yaml"}


VALUES: dict[str, list[str]] = {
    "default": [],
    "everything": [
        "--set=serviceMonitor.enabled=true,prometheusRule.enabled=true,networkPolicy.enabled=true",
        "--set=podDisruptionBudget.enabled=true,controller.actuate=scale,controller.watchNamespace=llm",
        "--set=acceleratorUnitCosts.A100.device=NVIDIA-A100-PCIE-80GB,acceleratorUnitCosts.A100.cost=40",
        "--set=autoscalers[0].name=a,autoscalers[0].namespace=llm,autoscalers[0].maxReplicas=3",
        "--set=autoscalers[1].name=b,autoscalers[1].namespace=llm,autoscalers[1].maxReplicas=3,autoscalers[1].kind=keda",
    ],
    "controller alone": ["--set=optimizer.enabled=false,optimizerUrl=http://elsewhere:8080"],
    "service alone": ["--set=controller.enabled=false"],
    "openshift": [f"--values={CHART / 'values-openshift.yaml'}"],
}


@needs_helm
@needs_cluster
@pytest.mark.parametrize("values", VALUES)
def test_api_server_takes_what_the_chart_renders(values: str, admin: Admin) -> None:
    run_helm("lint", "--strict", str(CHART), *VALUES[values])
    admin.namespace("fleet")
    rendered = run_helm("template", "fleetopt", str(CHART), "--namespace=fleet", *VALUES[values])
    found = [document for document in yaml.safe_load_all(rendered) if document]
    assert found
    for document in found:
        if document["kind"] not in FOREIGN:
            admin.apply(document)


@needs_helm
def test_chart_refuses_values_that_are_wrong() -> None:
    command = helm()
    assert command
    for wrong in ("controller.actuate=maybe", "optimiser.enabled=true", "optimizer.replicas=0"):
        done = subprocess.run(
            [command, "template", "x", str(CHART), f"--set={wrong}"], capture_output=True, check=False
        )
        assert done.returncode != 0, wrong


@needs_helm
def test_chart_and_kustomize_grant_the_same() -> None:
    def rules(found: list[dict[str, Any]], kind: str) -> list[Any]:
        return [rule for d in found if d["kind"] == kind for rule in d["rules"]]

    rendered = [
        d for d in yaml.safe_load_all(run_helm("template", "x", str(CHART), *VALUES["everything"])) if d
    ]
    shipped = [
        *documents(DEPLOY / "kustomize" / "rbac.yaml"),
        *documents(DEPLOY / "kustomize" / "scale" / "rbac.yaml"),
    ]
    assert rules(rendered, "ClusterRole") == rules(shipped, "ClusterRole")
    assert rules(rendered, "Role") == rules(shipped, "Role")


def test_resource_definition_of_the_chart_is_the_one() -> None:
    name = "variantautoscalings.llmd.ai.yaml"
    assert (CHART / "crds" / name).read_text() == (DEPLOY / "crd" / name).read_text()


def test_samples_work_together() -> None:
    maps = {d["metadata"]["name"]: d["data"] for d in documents(DEPLOY / "samples" / "configmaps.yaml")}
    configuration = read_configuration(maps, {})
    assert configuration.problems == ()

    variants = [
        d for name in ("2025", "2026") for d in documents(DEPLOY / "samples" / f"variant-{name}.yaml")
    ]
    parsed = [parse_variant(document) for document in variants]
    assert [variant.problems for variant in parsed] == [()] * 3
    targets = {v.key: deployment(v.target.name, "llm") for v in parsed}
    view = View(variants, targets, [], [node("n", "NVIDIA-A100-PCIE-80GB")], {})
    traffic = Traffic((Signal("llama-8b", "llm", "", 40.0, input_tokens=128.0, output_tokens=178.0),))
    seen = snapshot_of(view, configuration, traffic, nodes(A100=8), frozenset(), 0.0)
    analysis = analyze(seen, Memory(), 0.0)
    assert analysis.holds == {}
    assert {group.service_class.name for group in analysis.groups} == {"Premium"}
    # Without an answer everything is held, and nothing is lost.
    assert len(plan(analysis, None, seen, 0.0).decisions) == 3


def test_dashboard_shows_metrics_that_there_are() -> None:
    metrics = VariantMetrics()
    metrics.passed(PassFigures(ok=True, at_unix_s=0.0, gap=0.0))
    there = {
        f"{family.name}_total" if family.type == "counter" else family.name for family in metrics.collect()
    }
    dashboard = json.loads((DEPLOY / "grafana" / "fleetopt.json").read_text())
    shown = {
        name
        for panel in dashboard["panels"]
        for target in panel["targets"]
        for name in re.findall(r"\b(?:inferno|wva|fleetopt)_\w+", target["expr"])
    }
    assert shown <= there
    rules = (CHART / "templates" / "monitoring.yaml").read_text()
    assert set(re.findall(r"fleetopt_controller_\w+", rules)) <= there

"""What is shipped: the API server takes it, the samples work, and copies agree."""

import json
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from cluster_tools import DEPLOY, Admin, control_plane, deployment, needs_cluster, node
from control_plane import ControlPlane
from controller_tools import nodes
from processes import BUILD, binary, cache_folder, find_binary, missing
from prometheus_tools import needs_prometheus

from controller.actuate import plan
from controller.analyze import analyze
from controller.collect import View, read_configuration, snapshot_of
from controller.configmaps import SETTINGS_SUFFIX
from controller.crd import parse_variant
from controller.flags import read_options
from controller.metrics import PassFigures, VariantMetrics
from controller.settings import KEYS, PROMETHEUS_KEYS
from controller.snapshot import Signal, Traffic
from controller.stability import Memory
from solver.telemetry import Metrics

CHART = DEPLOY / "helm" / "fleetopt"
CRDS = cache_folder() / "crds"


needs_helm = pytest.mark.skipif(find_binary("helm") is None, reason="; ".join(missing(["helm"])) or "helm")
needs_kubectl = pytest.mark.skipif(
    find_binary("kubectl") is None, reason="; ".join(missing(["kubectl"])) or "kubectl"
)
needs_crds = pytest.mark.skipif(
    not list(CRDS.glob("*.yaml")),
    reason=f"needs the definitions of KEDA and of the Prometheus operator: {BUILD}",
)


def documents(path: Path) -> list[dict[str, Any]]:
    return [document for document in yaml.safe_load_all(path.read_text()) if document]


def run(program: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([binary(program), *arguments], capture_output=True, text=True, check=False)


def output_of(program: str, *arguments: str) -> str:
    done = run(program, *arguments)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def rendered(*options: str, namespace: str = "fleet") -> list[dict[str, Any]]:
    """Objects of the chart."""
    text = output_of("helm", "template", "fleetopt", str(CHART), f"--namespace={namespace}", *options)
    return [document for document in yaml.safe_load_all(text) if document]


def of_kind(found: list[dict[str, Any]], kind: str) -> dict[str, dict[str, Any]]:
    return {document["metadata"]["name"]: document for document in found if document["kind"] == kind}


def container(deployment: dict[str, Any], name: str) -> dict[str, Any]:
    (found,) = (c for c in deployment["spec"]["template"]["spec"]["containers"] if c["name"] == name)
    return found


@pytest.fixture(scope="module")
def plane(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ControlPlane]:
    with control_plane(tmp_path_factory.mktemp("plane")) as running:
        yield running


@pytest.fixture(scope="module")
def admin(plane: ControlPlane) -> Admin:
    found = Admin(plane)
    found.prepare()
    for path in CRDS.glob("*.yaml"):
        plane.apply_file(path)
    for name in ("llm", "fleet"):
        found.namespace(name)
    return found


SAMPLES = [
    *sorted(path for path in (DEPLOY / "samples").glob("*.yaml") if not path.name.endswith("values.yaml")),
    DEPLOY / "kind" / "model-server.yaml",
]


@needs_cluster
@needs_crds
@pytest.mark.parametrize("path", SAMPLES, ids=lambda path: path.name)
def test_api_server_takes_the_samples(path: Path, admin: Admin) -> None:
    for document in documents(path):
        admin.apply(document)


@needs_cluster
@needs_kubectl
@pytest.mark.parametrize("folder", ["kustomize", "overlays/scale", "overlays/secure-metrics"])
def test_api_server_takes_what_kustomize_makes(folder: str, admin: Admin) -> None:
    found = yaml.safe_load_all(output_of("kubectl", "kustomize", str(DEPLOY / folder)))
    kinds = set()
    for document in found:
        admin.apply(document)
        kinds.add(document["kind"])
    assert {"CustomResourceDefinition", "Deployment", "ClusterRole", "ConfigMap"} <= kinds


def test_kustomize_names_every_file() -> None:
    folders = (DEPLOY / "crd", *(path.parent for path in (DEPLOY / "kustomize").rglob("kustomization.yaml")))
    for folder in folders:
        (document,) = documents(folder / "kustomization.yaml")
        named = {name for name in document["resources"] if name.endswith(".yaml")}
        assert named == {path.name for path in folder.glob("*.yaml")} - {"kustomization.yaml"}


# Every optional object.
EVERYTHING = [
    "--set=serviceMonitor.enabled=true,prometheusRule.enabled=true,networkPolicy.enabled=true",
    "--set=podDisruptionBudget.enabled=true,controller.actuate=scale,controller.watchNamespace=llm",
    "--set=controller.record=file,controller.ownerReferences=true,controller.replicas=2",
    "--set=metrics.secure=true,metrics.certSecret=cert,metrics.readers[0].name=p,metrics.readers[0].namespace=m",
    "--set=metrics.wakers[0].name=gateway,metrics.wakers[0].namespace=llm",
    "--set=rbac.targets[0].group=apps,rbac.targets[0].resource=statefulsets,rbac.clusterRoles[0]=view",
    "--set=networkPolicy.metricsFrom[0].namespaceSelector.matchLabels.metrics=enabled",
    "--set=acceleratorUnitCosts.A100.device=NVIDIA-A100-PCIE-80GB,acceleratorUnitCosts.A100.cost=40",
    "--set=serviceClasses.premium\\.yaml=name: Premium,modelProfiles.m=[]",
    "--set=autoscalers[0].name=a,autoscalers[0].namespace=llm,autoscalers[0].maxReplicas=3",
    "--set=autoscalers[1].name=b,autoscalers[1].namespace=llm,autoscalers[1].maxReplicas=3,autoscalers[1].kind=keda",
]

VALUES: dict[str, list[str]] = {
    "default": [],
    "everything": EVERYTHING,
    "everything in one pod": [*EVERYTHING, "--set=mode=onePod"],
    "controller alone": ["--set=optimizer.enabled=false,optimizerUrl=http://elsewhere:8080"],
    "service alone": [
        "--set=controller.enabled=false,networkPolicy.enabled=true,serviceMonitor.enabled=true"
    ],
    "objects of variants alone": [
        "--set=optimizer.enabled=false,controller.enabled=false,autoscalers[0].name=a",
        "--set=autoscalers[0].namespace=llm,autoscalers[0].maxReplicas=3",
    ],
    "openshift": [f"--values={CHART / 'values-openshift.yaml'}"],
    "metrics of its own certificate": ["--set=metrics.secure=true,serviceMonitor.enabled=true"],
}


@needs_helm
@needs_cluster
@needs_crds
@pytest.mark.parametrize("values", VALUES)
def test_api_server_takes_what_the_chart_renders(values: str, plane: ControlPlane, admin: Admin) -> None:
    output_of("helm", "lint", "--strict", str(CHART), *VALUES[values])
    found = rendered(*VALUES[values])
    assert found
    for document in found:
        plane.apply(document, dry_run=True)


@needs_helm
@needs_cluster
@needs_crds
def test_chart_is_installed_upgraded_and_removed(plane: ControlPlane, admin: Admin, tmp_path: Path) -> None:
    where = [f"--kubeconfig={plane.kubeconfig(tmp_path / 'kubeconfig')}", "--namespace=release"]

    def deployments() -> list[str]:
        found = plane.get("/apis/apps/v1/namespaces/release/deployments")
        return sorted(item["metadata"]["name"] for item in found["items"])

    output_of("helm", "install", "mine", str(CHART), "--create-namespace", *where)
    assert deployments() == ["mine-fleetopt-controller", "mine-fleetopt-optimizer"]
    output_of("helm", "upgrade", "mine", str(CHART), *where, *VALUES["everything in one pod"])
    assert deployments() == ["mine-fleetopt-controller"]
    output_of("helm", "uninstall", "mine", *where)
    assert deployments() == []
    # The variants of the cluster stay.
    assert admin.variants() is not None


@needs_helm
@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ("controller.actuate=maybe", "/controller/actuate"),
        ("optimiser.enabled=true", "optimiser"),
        ("optimizer.replicas=0", "/optimizer/replicas"),
        ("optimizerUrl=elsewhere:8080", "/optimizerUrl"),
        ("mode=threePods", "/mode"),
        ("controller.record=/tmp/x", "/controller/record"),
        ("settings.GLOBAL_OPT_INTERVALL=60s", "GLOBAL_OPT_INTERVALL"),
        ("settings.WVA_SCALE_TO_ZERO=true", "/settings/WVA_SCALE_TO_ZERO"),
        ("serviceMonitor.intervall=5s", "intervall"),
        ("acceleratorUnitCosts.A100.cost=40", "device"),
        ("autoscalers[0].name=a", "namespace"),
        ("metrics.readers[0].name=prometheus", "namespace"),
        ("optimizer.enabled=false", "optimizerUrl has to name the service"),
        ("mode=onePod,optimizer.replicas=2", "set controller.replicas"),
        ("mode=onePod,optimizer.enabled=false", "onePod needs optimizer.enabled"),
    ],
)
def test_chart_refuses_values_that_are_wrong(wrong: str, said: str) -> None:
    done = run("helm", "template", "x", str(CHART), f"--set={wrong}")
    assert done.returncode != 0
    assert said in done.stderr


def test_schema_of_the_chart_knows_every_setting() -> None:
    schema = json.loads((CHART / "values.schema.json").read_text())
    pattern = schema["properties"]["settings"]["propertyNames"]["pattern"]
    assert [key for key in (*KEYS, *PROMETHEUS_KEYS) if not re.search(pattern, key)] == []


@needs_helm
def test_controller_takes_the_arguments_of_the_chart() -> None:
    for values in VALUES.values():
        for name, found in of_kind(rendered(*values), "Deployment").items():
            if name.endswith("-controller"):
                command, *arguments = container(found, "controller")["args"]
                assert command == "controller"
                options = read_options(arguments, {}, "fleetopt-controller")
                assert options.unused == []
                assert options.leader_elect
                ports = {p["name"]: p["containerPort"] for p in container(found, "controller")["ports"]}
                assert options.metrics_bind_address == ("", ports["metrics"])
                assert options.health_probe_bind_address == ("", ports["probes"])


@needs_helm
def test_service_and_controller_find_each_other() -> None:
    for values, address in (
        ([], "http://fleetopt-optimizer.fleet.svc.cluster.local:8080"),
        (["--set=mode=onePod"], "http://localhost:8090"),
        (VALUES["controller alone"], "http://elsewhere:8080"),
        (["--set=settings.FLEETOPT_OPTIMIZER_URL=http://other:80"], "http://other:80"),
    ):
        found = rendered(*values)
        (settings,) = of_kind(found, "ConfigMap").values()
        assert settings["metadata"]["name"].endswith(SETTINGS_SUFFIX)
        assert settings["data"]["FLEETOPT_OPTIMIZER_URL"] == address
    (pod,) = of_kind(rendered("--set=mode=onePod"), "Deployment").values()
    service = container(pod, "optimizer")
    assert service["ports"] == [{"name": "http", "containerPort": 8090}]
    assert service["args"][:5] == ["serve", "--host", "0.0.0.0", "--port", "8090"]


@needs_helm
def test_only_the_controller_has_a_token() -> None:
    """In one pod too: the service reads documents that clients send, and needs nothing of the cluster."""
    for values in ([], ["--set=mode=onePod"], VALUES["everything"]):
        for found in of_kind(rendered(*values), "Deployment").values():
            spec = found["spec"]["template"]["spec"]
            assert spec["automountServiceAccountToken"] is False
            tokens = {
                volume["name"]
                for volume in spec["volumes"]
                if any(
                    "serviceAccountToken" in source
                    for source in volume.get("projected", {}).get("sources", ())
                )
            }
            holders = {
                c["name"] for c in spec["containers"] if tokens & {m["name"] for m in c["volumeMounts"]}
            }
            assert holders == ({"controller"} if tokens else set())
            assert bool(tokens) == any(c["name"] == "controller" for c in spec["containers"])


@needs_helm
def test_containers_run_without_rights() -> None:
    for values in VALUES.values():
        for found in of_kind(rendered(*values), "Deployment").values():
            spec = found["spec"]["template"]["spec"]
            assert spec["securityContext"]["runAsNonRoot"] is True
            for each in spec["containers"]:
                assert each["securityContext"] == {
                    "allowPrivilegeEscalation": False,
                    "readOnlyRootFilesystem": True,
                    "capabilities": {"drop": ["ALL"]},
                }


def rules(found: list[dict[str, Any]], kind: str) -> list[Any]:
    return [rule for d in found if d["kind"] == kind for rule in d["rules"]]


@needs_helm
def test_chart_and_kustomize_grant_the_same() -> None:
    folder = DEPLOY / "kustomize"
    shipped = [d for name in ("", "scale", "secure-metrics") for d in documents(folder / name / "rbac.yaml")]
    of_chart = rendered("--set=controller.actuate=scale,metrics.secure=true")
    assert rules(of_chart, "ClusterRole") == rules(shipped, "ClusterRole")
    assert rules(of_chart, "Role") == rules(shipped, "Role")


@needs_helm
def test_permissions_are_there_only_where_they_are_needed() -> None:
    default = rules(rendered(), "ClusterRole")

    def added(*options: str) -> list[Any]:
        return [rule for rule in rules(rendered(*options), "ClusterRole") if rule not in default]

    assert [v for rule in default for v in rule["verbs"] if v not in ("list", "watch")] == ["patch", "create"]
    assert added("--set=controller.actuate=scale") == [
        {"apiGroups": ["apps"], "resources": ["deployments/scale"], "verbs": ["patch"]}
    ]
    assert added("--set=controller.ownerReferences=true") == [
        {"apiGroups": ["llmd.ai"], "resources": ["variantautoscalings"], "verbs": ["patch"]}
    ]
    assert added("--set=rbac.targets[0].group=apps,rbac.targets[0].resource=statefulsets") == [
        {"apiGroups": ["apps"], "resources": ["statefulsets"], "verbs": ["get"]},
        {"apiGroups": ["apps"], "resources": ["statefulsets/scale"], "verbs": ["get"]},
    ]
    assert {r for rule in added("--set=metrics.secure=true") for r in rule.get("resources", ())} == {
        "tokenreviews",
        "subjectaccessreviews",
    }
    (settings,) = of_kind(rendered("--set=controller.ownerReferences=true"), "ConfigMap").values()
    assert settings["data"]["FLEETOPT_OWNER_REFERENCE"] == "true"


# What managers were granted for the whole cluster (config/rbac/role.yaml of
# github.com/llm-d-incubation/workload-variant-autoscaler), of the resources that matter here.
GRANTED_2026 = {
    "variantautoscalings": "create delete get list patch update watch",
    "variantautoscalings/status": "get patch update",
    "deployments": "get list patch update watch",
    "nodes": "get list patch update watch",
    "pods": "get list watch",
    "configmaps": "get list update watch",
    "events": "create patch",
    "deployments/scale": "get update",
}
GRANTED_2025 = {
    name: verbs for name, verbs in GRANTED_2026.items() if name not in ("pods", "deployments/scale")
}


@pytest.mark.parametrize(
    ("granted", "overlay", "missing_there"),
    [
        (GRANTED_2026, "", set()),
        (GRANTED_2025, "", {("pods", "list")}),
        (GRANTED_2026, "scale", {("deployments/scale", "patch")}),
    ],
)
def test_roles_of_older_managers_lack_what_the_documentation_says(
    granted: dict[str, str], overlay: str, missing_there: set[tuple[str, str]]
) -> None:
    shipped = [d for name in {"", overlay} for d in documents(DEPLOY / "kustomize" / name / "rbac.yaml")]
    needed = {
        (resource, verb)
        for rule in (*rules(shipped, "ClusterRole"), *rules(shipped, "Role"))
        for resource in rule["resources"]
        for verb in rule["verbs"]
        # Of their own namespace they may do everything with leases.
        if resource != "leases"
    }
    assert {
        (what, verb) for what, verb in needed if verb not in granted.get(what, "").split()
    } == missing_there


@needs_helm
def test_network_policies_let_in_whom_they_name() -> None:
    def sources(name: str, *options: str) -> list[Any]:
        policy = of_kind(rendered("--set=networkPolicy.enabled=true", *options), "NetworkPolicy")[name]
        return [source for rule in policy["spec"]["ingress"] or () for source in rule.get("from", ["all"])]

    prometheus = {"namespaceSelector": {"matchLabels": {"metrics": "enabled"}}}
    named = "--set=networkPolicy.metricsFrom[0].namespaceSelector.matchLabels.metrics=enabled"
    (controller,) = sources("fleetopt-optimizer")
    assert controller["podSelector"]["matchLabels"]["app.kubernetes.io/component"] == "controller"
    assert sources("fleetopt-optimizer", named) == [controller, prometheus]
    assert sources("fleetopt-optimizer", "--set=controller.enabled=false") == []
    assert sources("fleetopt-controller") == ["all"]
    assert sources("fleetopt-controller", named) == [prometheus]
    assert sources("fleetopt-controller", named, "--set=mode=onePod") == [prometheus, prometheus]


@needs_helm
def test_monitor_of_secure_metrics_shows_a_token() -> None:
    def endpoint(*options: str) -> dict[str, Any]:
        found = rendered("--set=serviceMonitor.enabled=true,metrics.secure=true", *options)
        (found_endpoint,) = of_kind(found, "ServiceMonitor")["fleetopt-controller"]["spec"]["endpoints"]
        return found_endpoint

    own = endpoint()
    assert own["scheme"] == "https"
    assert own["bearerTokenFile"].startswith("/var/run/secrets/")
    assert own["tlsConfig"] == {"insecureSkipVerify": True}
    given = endpoint(
        "--set=metrics.certSecret=cert,serviceMonitor.tokenSecret.name=t,serviceMonitor.tokenSecret.key=k"
    )
    assert given["authorization"] == {"credentials": {"name": "t", "key": "k"}}
    assert given["tlsConfig"]["serverName"] == "fleetopt-controller-metrics.fleet.svc"


@needs_helm
@pytest.mark.parametrize("values", VALUES)
def test_what_refers_to_something_finds_it(values: str) -> None:
    """Services find pods and monitors find Services, by their labels and the names of ports."""
    found = rendered(*VALUES[values])

    def selects(selector: dict[str, str], labels: dict[str, str]) -> bool:
        return selector.items() <= labels.items()

    pods = [d["spec"]["template"] for d in of_kind(found, "Deployment").values()]
    services = list(of_kind(found, "Service").values())
    for service in services:
        (pod,) = (p for p in pods if selects(service["spec"]["selector"], p["metadata"]["labels"]))
        names = {port["name"] for c in pod["spec"]["containers"] for port in c["ports"]}
        assert {port["targetPort"] for port in service["spec"]["ports"]} <= names
    for monitor in of_kind(found, "ServiceMonitor").values():
        selector = monitor["spec"]["selector"]["matchLabels"]
        (service,) = (s for s in services if selects(selector, s["metadata"]["labels"]))
        ports = {port["name"] for port in service["spec"]["ports"]}
        assert {endpoint["port"] for endpoint in monitor["spec"]["endpoints"]} <= ports
    for kind, field in (("NetworkPolicy", "podSelector"), ("PodDisruptionBudget", "selector")):
        for document in of_kind(found, kind).values():
            selector = document["spec"][field]["matchLabels"]
            assert len([p for p in pods if selects(selector, p["metadata"]["labels"])]) == 1


@needs_helm
def test_variants_without_a_decision_keep_their_replicas() -> None:
    """KEDA takes an absent gauge for zero, and may take a query that hangs for it; `make e2e` tries both."""
    shipped = documents(DEPLOY / "samples" / "keda-scaledobject.yaml")
    for found in (*shipped, *of_kind(rendered(*EVERYTHING), "ScaledObject").values()):
        (trigger,) = found["spec"]["triggers"]
        assert trigger["metadata"]["ignoreNullValues"] == "false"
        assert trigger["metadata"]["threshold"] == "1"
        assert trigger["metricType"] == "AverageValue"
        spec, fallback = found["spec"], found["spec"]["fallback"]
        assert spec["minReplicaCount"] == 1
        # 0 replicas would switch the fallback off.
        assert (fallback["behavior"], fallback["replicas"]) == ("currentReplicas", 1)
        # KEDA asks twice before it counts a failure, and gives up a query after 3 s.
        until_it_holds_s = (fallback["failureThreshold"] + 1) * (spec["pollingInterval"] + 2 * 3)
        assert spec["cooldownPeriod"] > until_it_holds_s


@needs_helm
@pytest.mark.parametrize("kind", ["hpa", "keda"])
def test_last_replica_goes_only_where_it_was_asked_for(kind: str) -> None:
    kinds = {
        "hpa": ("HorizontalPodAutoscaler", "minReplicas"),
        "keda": ("ScaledObject", "minReplicaCount"),
    }
    name, field = kinds[kind]
    first = "autoscalers[0]"
    given = f"--set={first}.name=a,{first}.namespace=n,{first}.maxReplicas=3,{first}.kind={kind}"
    for replicas, expected in ((None, 1), (0, 0), (2, 2)):
        option = "" if replicas is None else f",{first}.minReplicas={replicas}"
        (found,) = of_kind(rendered(given + option), name).values()
        assert found["spec"][field] == expected


@needs_helm
def test_autoscalers_go_up_faster_than_down() -> None:
    found = rendered(*EVERYTHING)
    behaviors = [hpa["spec"]["behavior"] for hpa in of_kind(found, "HorizontalPodAutoscaler").values()]
    for document in (
        *of_kind(found, "ScaledObject").values(),
        *documents(DEPLOY / "samples" / "keda-scaledobject.yaml"),
    ):
        behaviors.append(document["spec"]["advanced"]["horizontalPodAutoscalerConfig"]["behavior"])
    behaviors += [document["spec"]["behavior"] for document in documents(DEPLOY / "samples" / "hpa.yaml")]
    assert len(behaviors) == 4
    for behavior in behaviors:
        (up,), (down,) = (behavior[way]["policies"] for way in ("scaleUp", "scaleDown"))
        assert up["value"] / up["periodSeconds"] > down["value"] / down["periodSeconds"]
        # The controller has waited before it asks for less.
        assert behavior["scaleDown"]["stabilizationWindowSeconds"] == 0


def test_adapter_takes_the_largest_of_several_series() -> None:
    (values,) = documents(DEPLOY / "samples" / "prometheus-adapter-values.yaml")
    names = set()
    for rule in values["rules"]["external"]:
        name = rule["name"]["as"]
        names.add(name)
        assert (
            rule["metricsQuery"]
            == f"max by (variant_name, exported_namespace) ({name}{{<<.LabelMatchers>>}})"
        )
    assert names == {"inferno_desired_replicas", "wva_desired_replicas"}


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


def names_in(text: str) -> set[str]:
    """Metrics that a PromQL expression names."""
    return set(re.findall(r"\b(?:inferno|wva|fleetopt)_\w+", text))


def there_are() -> set[str]:
    """Metrics of the controller and of the service, as a scrape names them."""
    metrics = VariantMetrics()
    metrics.passed(PassFigures(ok=True, at_unix_s=0.0, gap=0.0))
    found = {
        f"{family.name}_total" if family.type == "counter" else family.name for family in metrics.collect()
    }
    text, _ = Metrics().render("text/plain")
    of_service = set(re.findall(r"^# TYPE (\w+) \w+$", text.decode(), re.MULTILINE))
    histograms = set(re.findall(r"^# TYPE (\w+) histogram$", text.decode(), re.MULTILINE))
    return found | of_service | {f"{name}_{end}" for name in histograms for end in ("bucket", "sum", "count")}


def test_dashboard_shows_metrics_that_there_are() -> None:
    dashboard = json.loads((DEPLOY / "grafana" / "fleetopt.json").read_text())
    expressions = [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]
    shown = {name for expression in expressions for name in names_in(expression)}
    assert shown
    assert shown <= there_are()


@needs_helm
@needs_prometheus
def test_alerts_are_rules_on_metrics_that_there_are(tmp_path: Path) -> None:
    (rule,) = of_kind(rendered("--set=prometheusRule.enabled=true"), "PrometheusRule").values()
    (tmp_path / "rules.yaml").write_text(yaml.safe_dump(rule["spec"]))
    output_of("promtool", "check", "rules", str(tmp_path / "rules.yaml"))
    alerts = [alert for group in rule["spec"]["groups"] for alert in group["rules"]]
    assert {name for alert in alerts for name in names_in(alert["expr"])} <= there_are()
    # What Helm would have taken for its own is left for Prometheus.
    assert "{{ $labels.reason }}" in "".join(alert["annotations"]["summary"] for alert in alerts)

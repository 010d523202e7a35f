"""A real etcd and kube-apiserver on loopback, and the objects that tests put there."""

import json
import os
import secrets
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml
from controller_tools import CLASSES, COSTS
from kubernetes import client
from prometheus_tools import free_port, get, wait_until

DEPLOY = Path(__file__).parents[2] / "deploy"
SYSTEM = "fleetopt-system"


def binaries() -> Path | None:
    """Folder with etcd and kube-apiserver: KUBEBUILDER_ASSETS, or what deploy/cluster/build.sh makes."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "fleetopt-cluster"
    for folder in (Path(os.environ.get("KUBEBUILDER_ASSETS") or cache), cache):
        if all((folder / name).is_file() for name in ("etcd", "kube-apiserver")):
            return folder
    return None


needs_cluster = pytest.mark.skipif(
    binaries() is None,
    reason="needs etcd and kube-apiserver: deploy/cluster/build.sh makes them, or set KUBEBUILDER_ASSETS",
)


@dataclass
class ControlPlane:
    """A running API server; `restart` ends it and starts it again on the same data."""

    folder: Path
    port: int
    arguments: list[str]
    token: str
    process: subprocess.Popen[bytes]

    @property
    def url(self) -> str:
        return f"https://127.0.0.1:{self.port}"

    @property
    def ca(self) -> Path:
        return self.folder / "apiserver.crt"

    def api(self, token: str = "") -> client.ApiClient:
        configuration = client.Configuration()
        configuration.host = self.url
        configuration.ssl_ca_cert = str(self.ca)
        configuration.retries = False
        configuration.api_key = {"BearerToken": f"Bearer {token or self.token}"}
        return client.ApiClient(configuration)

    def kubeconfig(self, path: Path, token: str = "") -> Path:
        user = {"name": "u", "user": {"token": token or self.token}}
        cluster = {"name": "c", "cluster": {"server": self.url, "certificate-authority": str(self.ca)}}
        context = {"name": "x", "context": {"cluster": "c", "user": "u"}}
        document = {"clusters": [cluster], "users": [user], "contexts": [context], "current-context": "x"}
        path.write_text(json.dumps({"apiVersion": "v1", "kind": "Config", **document}))
        return path

    def stop(self) -> None:
        self.process.terminate()
        self.process.wait(30)

    def start(self) -> None:
        with (self.folder / "apiserver.log").open("ab") as log:
            self.process = subprocess.Popen(self.arguments, stdout=log, stderr=log)
        wait_until(self.is_ready, 60.0)

    def is_ready(self) -> bool:
        if self.process.poll() is not None:
            pytest.fail((self.folder / "apiserver.log").read_text()[-2000:])
        try:
            return bool(client.VersionApi(self.api()).get_code(_request_timeout=2).git_version) and bool(
                client.CoreV1Api(self.api()).read_namespace("kube-system", _request_timeout=2)
            )
        except Exception:
            # Whatever is wrong, it is not ready yet; the time limit tells when it never is.
            return False


@contextmanager
def control_plane(folder: Path) -> Iterator[ControlPlane]:
    """Run etcd and kube-apiserver with RBAC and an administrator's token."""
    assets = binaries()
    assert assets
    key = folder / "service-account.key"
    subprocess.run(["openssl", "genrsa", "-out", str(key), "2048"], check=True, capture_output=True)
    etcd_port, peer_port, port, token = free_port(), free_port(), free_port(), secrets.token_hex(16)
    (folder / "tokens.csv").write_text(f'{token},admin,admin,"system:masters"\n')
    (folder / "audit.yaml").write_text(
        json.dumps({"apiVersion": "audit.k8s.io/v1", "kind": "Policy", "rules": [{"level": "Metadata"}]})
    )
    etcd_url = f"http://127.0.0.1:{etcd_port}"
    with (folder / "etcd.log").open("wb") as log:
        etcd = subprocess.Popen(
            [
                str(assets / "etcd"),
                f"--data-dir={folder / 'etcd'}",
                "--unsafe-no-fsync",
                f"--listen-client-urls={etcd_url}",
                f"--advertise-client-urls={etcd_url}",
                f"--listen-peer-urls=http://127.0.0.1:{peer_port}",
            ],
            stdout=log,
            stderr=log,
        )
    arguments = [
        str(assets / "kube-apiserver"),
        f"--etcd-servers={etcd_url}",
        "--bind-address=127.0.0.1",
        f"--secure-port={port}",
        f"--cert-dir={folder}",
        "--service-cluster-ip-range=10.0.0.0/24",
        "--authorization-mode=RBAC",
        f"--token-auth-file={folder / 'tokens.csv'}",
        f"--service-account-key-file={key}",
        f"--service-account-signing-key-file={key}",
        "--service-account-issuer=https://kubernetes.default.svc",
        # No controller manager makes the default service accounts that this plugin asks for.
        "--disable-admission-plugins=ServiceAccount",
        f"--audit-policy-file={folder / 'audit.yaml'}",
        f"--audit-log-path={folder / 'audit.log'}",
    ]
    plane = ControlPlane(folder, port, arguments, token, etcd)
    try:
        wait_until(lambda: "true" in get(f"{etcd_url}/health"))
        plane.start()
        yield plane
    finally:
        if plane.process is not etcd:
            plane.stop()
        etcd.terminate()
        etcd.wait(30)
        shutil.rmtree(folder / "etcd", ignore_errors=True)


class Admin:
    """Puts objects into the cluster, as an administrator."""

    def __init__(self, plane: ControlPlane) -> None:
        self.api = plane.api()
        self.core = client.CoreV1Api(self.api)
        self.custom = client.CustomObjectsApi(self.api)

    def apply(self, document: dict[str, Any]) -> None:
        """Server-side apply, of the object and its status."""
        # Lists of the package's typed clients differ by kind; one path for all kinds is shorter.
        self._send("PATCH", document, "", "application/apply-patch+yaml")
        if "status" in document and document["kind"] not in ("CustomResourceDefinition",):
            self._send("PATCH", document, "/status", "application/merge-patch+json")

    def _send(self, method: str, document: dict[str, Any], suffix: str, kind: str) -> None:
        path = object_path(document) + suffix
        query = "?fieldManager=test&force=true" if kind.startswith("application/apply") else ""
        headers = {"Content-Type": kind, "Authorization": self.api.configuration.api_key["BearerToken"]}
        url = f"{self.api.configuration.host}{path}{query}"
        answer = self.api.call_api(method, url, header_params=headers, body=document)
        if not 200 <= answer.status < 300:
            raise AssertionError(f"{path}: {answer.status} {answer.read()!r}")
        answer.read()

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


def object_path(document: dict[str, Any]) -> str:
    """Path of an object in the API; plurals are regular but for what tests do not use."""
    version, kind, metadata = document["apiVersion"], document["kind"], document["metadata"]
    base = f"/api/{version}" if "/" not in version else f"/apis/{version}"
    space = f"/namespaces/{metadata['namespace']}" if "namespace" in metadata else ""
    plural = f"{kind.lower()}es" if kind.endswith("ss") else f"{kind.lower()}s"
    plural = "networkpolicies" if kind == "NetworkPolicy" else plural
    return f"{base}{space}/{plural}/{metadata['name']}"


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

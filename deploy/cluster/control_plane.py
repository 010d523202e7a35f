"""A real etcd and kube-apiserver on loopback, with RBAC, an audit log and the aggregation layer."""

from __future__ import annotations

import json
import secrets
import shutil
import urllib.request
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import yaml
from certificates import Certificate, make_authority, make_certificate
from kubernetes import client
from kubernetes.client.exceptions import ApiException
from processes import Daemon, binary, free_port, missing, wait_until
from urllib3.exceptions import HTTPError

if TYPE_CHECKING:
    from pathlib import Path
    from types import TracebackType

ISSUER = "https://kubernetes.default.svc"

# Users of the token file; each is an administrator, and the audit log tells them apart.
ADMIN, CONTROLLERS, SCHEDULER, KWOK, METRICS = "admin", "controllers", "scheduler", "kwok", "external-metrics"
_USERS = (ADMIN, CONTROLLERS, SCHEDULER, KWOK, METRICS)

# Of lists and watches of the system's own components nobody asks; their lines would be most of the log.
_AUDIT = {
    "apiVersion": "audit.k8s.io/v1",
    "kind": "Policy",
    "omitStages": ["RequestReceived"],
    "rules": [
        {"level": "None", "users": ["system:apiserver", CONTROLLERS, SCHEDULER, KWOK]},
        {"level": "Metadata"},
    ],
}


class ControlPlane:
    """A running API server, from ``with`` to its end.

    Parameters
    ----------
    folder : Path
        Empty; keys, data and logs go there.
    service_accounts : bool
        Whether pods must have a service account, which a controller manager makes.

    Raises
    ------
    ComponentError
        When it does not start; with the end of the log.
    """

    def __init__(self, folder: Path, *, service_accounts: bool = False) -> None:
        self.folder = folder
        self._port, self._etcd_port = free_port(), free_port()
        self._tokens = {user: secrets.token_hex(16) for user in _USERS}
        self._service_accounts = service_accounts
        self._stack = ExitStack()
        self._kinds: dict[str, dict[str, tuple[str, bool]]] = {}
        self._server: Daemon | None = None
        self._admin: client.ApiClient | None = None

    @staticmethod
    def binaries_missing() -> list[str]:
        """Return which programs are not there, each with how to get it."""
        return missing(["openssl", "etcd", "kube-apiserver"])

    @property
    def url(self) -> str:
        """Where the API server listens."""
        return f"https://127.0.0.1:{self._port}"

    @property
    def ca(self) -> Path:
        """Certificate of the authority behind every certificate here."""
        return self.folder / "ca.crt"

    def __enter__(self) -> ControlPlane:
        """Start it."""
        with ExitStack() as stack:
            self._stack = stack
            self._start()
            # Nothing went wrong: what was started runs on until the end.
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop everything, the latest first."""
        self._stack.close()

    def _start(self) -> None:
        self._authority = make_authority(self.folder)
        hosts = ("localhost", "kubernetes.default.svc", "*.kube-system.svc")
        self._serving = make_certificate(self._authority, self.folder, "serving", hosts)
        self._start_etcd()
        self._server = self._daemon("kube-apiserver", self._server_arguments())
        self._stack.callback(self.stop)
        self.start()

    def _daemon(self, name: str, arguments: list[str], environ: dict[str, str] | None = None) -> Daemon:
        return Daemon([binary(name), *arguments], self.folder / f"{name}.log", environ)

    def _run(self, daemon: Daemon) -> Daemon:
        """Start a daemon that ends with the cluster."""
        daemon.start()
        self._stack.callback(daemon.stop)
        return daemon

    def _start_etcd(self) -> None:
        url = f"http://127.0.0.1:{self._etcd_port}"
        peers = f"http://127.0.0.1:{free_port()}"
        etcd = self._daemon(
            "etcd",
            [
                f"--data-dir={self.folder / 'etcd'}",
                "--unsafe-no-fsync",
                f"--listen-client-urls={url}",
                f"--advertise-client-urls={url}",
                f"--listen-peer-urls={peers}",
                f"--initial-advertise-peer-urls={peers}",
                f"--initial-cluster=default={peers}",
            ],
        )
        self._stack.callback(shutil.rmtree, self.folder / "etcd", ignore_errors=True)
        self._run(etcd)

        def healthy() -> bool:
            with urllib.request.urlopen(f"{url}/health", timeout=2.0) as answer:
                return b"true" in answer.read()

        wait_until(healthy, "etcd answers", daemons=[etcd])

    def _server_arguments(self) -> list[str]:
        tokens, policy = self.folder / "tokens.csv", self.folder / "audit-policy.json"
        lines = [f'{token},{user},{user},"system:masters"' for user, token in self._tokens.items()]
        tokens.write_text("\n".join(lines) + "\n")
        policy.write_text(json.dumps(_AUDIT))
        signing = make_certificate(self._authority, self.folder, "service-accounts", ())
        proxy = make_certificate(self._authority, self.folder, "front-proxy", ())
        return [
            f"--etcd-servers=http://127.0.0.1:{self._etcd_port}",
            "--bind-address=127.0.0.1",
            f"--secure-port={self._port}",
            *tls_arguments(self._serving),
            "--service-cluster-ip-range=10.0.0.0/24",
            "--authorization-mode=RBAC",
            f"--token-auth-file={tokens}",
            f"--client-ca-file={self.ca}",
            f"--service-account-key-file={signing.certificate}",
            f"--service-account-signing-key-file={signing.key}",
            f"--service-account-issuer={ISSUER}",
            f"--requestheader-client-ca-file={self.ca}",
            "--requestheader-allowed-names=front-proxy",
            "--requestheader-username-headers=X-Remote-User",
            "--requestheader-group-headers=X-Remote-Group",
            "--requestheader-extra-headers-prefix=X-Remote-Extra-",
            f"--proxy-client-cert-file={proxy.certificate}",
            f"--proxy-client-key-file={proxy.key}",
            *([] if self._service_accounts else ["--disable-admission-plugins=ServiceAccount"]),
            f"--audit-policy-file={policy}",
            f"--audit-log-path={self.folder / 'audit.log'}",
        ]

    def start(self) -> None:
        """Start the API server, also again after `stop`, and wait until it is ready."""
        assert self._server
        self._server.start()
        wait_until(self.is_ready, "the API server is ready", 120.0, [self._server])

    def stop(self) -> None:
        """Stop the API server alone; its data stay."""
        assert self._server
        self._server.stop()

    def is_ready(self) -> bool:
        """Whether it answers and has made its first objects."""
        try:
            self.get("/api/v1/namespaces/kube-system")
            return self._send("GET", "/readyz") == b"ok"
        except (ApiException, HTTPError):
            return False

    def api(self, token: str = "") -> client.ApiClient:
        """Return a client of the API server with this token, or as an administrator."""
        configuration = client.Configuration()
        configuration.host = self.url
        configuration.ssl_ca_cert = str(self.ca)
        configuration.retries = False
        configuration.api_key = {"BearerToken": f"Bearer {token or self._tokens[ADMIN]}"}
        return client.ApiClient(configuration)

    def kubeconfig(self, path: Path, token: str = "") -> Path:
        """Write a kubeconfig with this token, or of an administrator, and return its path."""
        user = {"name": "user", "user": {"token": token or self._tokens[ADMIN]}}
        cluster = {"name": "fleetopt", "cluster": {"server": self.url, "certificate-authority": str(self.ca)}}
        context = {"name": "fleetopt", "context": {"cluster": "fleetopt", "user": "user"}}
        document = {"clusters": [cluster], "users": [user], "contexts": [context]}
        document |= {"apiVersion": "v1", "kind": "Config", "current-context": "fleetopt"}
        # JSON is YAML.
        path.write_text(json.dumps(document))
        path.chmod(0o600)
        return path

    def token(self, service_account: str, namespace: str) -> str:
        """Return a token of a service account that exists."""
        body = client.AuthenticationV1TokenRequest(spec=client.V1TokenRequestSpec(audiences=[ISSUER]))
        answer = client.CoreV1Api(self.api()).create_namespaced_service_account_token(
            service_account, namespace, body
        )
        assert answer.status
        return str(answer.status.token)

    def audit(self) -> list[dict[str, Any]]:
        """Return the events of the audit log: every finished request but those of the system's components."""
        text = (self.folder / "audit.log").read_text()
        # The last line may be half written.
        return [json.loads(line) for line in text[: text.rfind("\n") + 1].splitlines()]

    def apply(self, document: dict[str, Any], *, dry_run: bool = False) -> None:
        """Apply an object on the server's side, and its status where it has one.

        Raises
        ------
        ApiException
            What the API server says.
        ComponentError
            When it does not know the kind, also after a while: definitions take a moment.
        """
        path = self.path(document)
        query = "?fieldManager=admin&force=true" + ("&dryRun=All" if dry_run else "")
        self._send("PATCH", path + query, document, "application/apply-patch+yaml")
        if "status" in document and document["kind"] != "CustomResourceDefinition" and not dry_run:
            self.patch(f"{path}/status", {"status": document["status"]})

    def apply_file(self, path: Path) -> None:
        """Apply every object of a YAML file."""
        for document in yaml.safe_load_all(path.read_text()):
            if document:
                self.apply(document)

    def path(self, document: dict[str, Any]) -> str:
        """Return the path of an object, as the API server names its kind."""
        version, kind, metadata = document["apiVersion"], document["kind"], document["metadata"]

        def known() -> bool:
            return kind in self._kinds.get(version, {}) or kind in self._discover(version)

        wait_until(known, f"the API server knows {version} {kind}", 30.0)
        plural, namespaced = self._kinds[version][kind]
        space = f"/namespaces/{metadata.get('namespace', 'default')}" if namespaced else ""
        return f"{_base(version)}{space}/{plural}/{metadata['name']}"

    def _discover(self, version: str) -> dict[str, tuple[str, bool]]:
        try:
            answer = self.get(_base(version))
        except ApiException:
            return {}
        kinds = {r["kind"]: (r["name"], r["namespaced"]) for r in answer["resources"] if "/" not in r["name"]}
        self._kinds[version] = kinds
        return kinds

    def get(self, path: str, token: str = "") -> Any:
        """Return the JSON of any path of the API.

        Parameters
        ----------
        path : str
            Such as ``/api/v1/pods``.
        token : str
            Of who asks; an administrator by default.

        Raises
        ------
        ApiException
        """
        return json.loads(self._send("GET", path, token=token))

    def changes(self, path: str, since: str) -> list[dict[str, Any]]:
        """Return the objects of a list as they were after each change since a version of the list.

        Parameters
        ----------
        path : str
            Such as ``/apis/apps/v1/namespaces/llm/deployments``.
        since : str
            A ``resourceVersion`` of some minutes ago at most.
        """
        query = f"?watch=true&timeoutSeconds=1&resourceVersion={since}"
        return [json.loads(line)["object"] for line in self._send("GET", path + query).splitlines()]

    def patch(self, path: str, change: dict[str, Any]) -> None:
        """Merge a change into an object; raises ApiException."""
        self._send("PATCH", path, change, "application/merge-patch+json")

    def delete(self, path: str) -> None:
        """Delete an object at once, without time for its pods to end; raises ApiException."""
        self._send("DELETE", f"{path}?gracePeriodSeconds=0&propagationPolicy=Background")

    def _send(
        self, method: str, path: str, body: Any = None, kind: str = "application/json", token: str = ""
    ) -> bytes:
        if self._admin is None:
            self._admin = self.api()
        api = self.api(token) if token else self._admin
        headers = {"Content-Type": kind, "Authorization": api.configuration.api_key["BearerToken"]}
        answer = api.call_api(method, self.url + path, header_params=headers, body=body, _request_timeout=30)
        content = bytes(answer.read())
        if not 200 <= answer.status < 300:
            raise ApiException(answer.status, f"{method} {path}: {content.decode(errors='replace')}")
        return content


def tls_arguments(files: Certificate) -> list[str]:
    """Return the flags of a server's certificate, as all of Kubernetes names them."""
    return [f"--tls-cert-file={files.certificate}", f"--tls-private-key-file={files.key}"]


def _base(version: str) -> str:
    return f"/apis/{version}" if "/" in version else f"/api/{version}"

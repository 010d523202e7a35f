"""Secure metrics: TLS, whom the cluster knows and allows, and what happens when it does not answer."""

import contextlib
import os
import ssl
import subprocess
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from cluster_tools import Admin, ControlPlane, control_plane, needs_cluster
from kubernetes.client import ApiClient, AuthenticationV1TokenRequest, CoreV1Api, V1TokenRequestSpec
from prometheus_client import CollectorRegistry
from prometheus_tools import wait_until
from secure_tools import ask, grant

from controller.certificate import FileCertificate, self_signed
from controller.errors import ClusterError
from controller.secure import ClusterGate, ClusterReviewer, User
from controller.serve import Signals, metric_routes, serving

HERE = ("127.0.0.1", 0)


# --- whom the gate lets in ---


class Cluster:
    """An API server's answers: one account that may read, one that may not; the reviews are counted."""

    def __init__(self) -> None:
        self.tokens = {"good": User("prometheus"), "other": User("somebody")}
        self.allowed = {("prometheus", "get", "/metrics")}
        self.reviews: list[str] = []
        self.is_down = False

    def user(self, token: str) -> User | None:
        self.reviews.append("user")
        if self.is_down:
            raise ClusterError("create tokenreviews: the Kubernetes API does not answer")
        return self.tokens.get(token)

    def may(self, user: User, verb: str, path: str) -> bool:
        self.reviews.append("may")
        if self.is_down:
            raise ClusterError("create subjectaccessreviews: the Kubernetes API does not answer")
        return (user.name, verb, path) in self.allowed


class Clock:
    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


def test_answers_are_remembered_for_a_while() -> None:
    cluster, clock = Cluster(), Clock()
    gate = ClusterGate(cluster, clock)

    def status(token: str) -> int:
        refusal = gate(f"Bearer {token}", "GET", "/metrics")
        return refusal.status if refusal else 200

    assert [status("good"), status("good"), status("other"), status("wrong")] == [200, 200, 403, 401]
    assert cluster.reviews == ["user", "may", "user", "may", "user"]

    # A refusal counts for half a minute, a token for one, a permission for five.
    cluster.reviews.clear()
    cluster.allowed.add(("somebody", "get", "/metrics"))
    clock.now_s = 29.0
    assert [status("good"), status("other"), status("wrong")] == [200, 403, 401]
    assert cluster.reviews == []
    clock.now_s = 31.0
    assert status("other") == 200
    assert cluster.reviews == ["may"]
    clock.now_s = 61.0
    del cluster.tokens["good"]
    assert status("good") == 401
    cluster.allowed.clear()
    clock.now_s = 330.0
    assert status("other") == 200
    clock.now_s = 332.0
    assert status("other") == 403


def test_nobody_is_let_in_while_the_cluster_does_not_answer(caplog: pytest.LogCaptureFixture) -> None:
    cluster, clock = Cluster(), Clock()
    gate = ClusterGate(cluster, clock)
    cluster.is_down = True
    for _ in range(2):
        refusal = gate("Bearer good", "GET", "/metrics")
        assert refusal is not None
        assert refusal.status == 503
        assert b"create tokenreviews: the Kubernetes API does not answer" in refusal.body
    assert len(caplog.records) == 1, "the log says it once"
    cluster.is_down = False
    assert gate("Bearer good", "GET", "/metrics") is None
    cluster.is_down = True
    assert gate("Bearer good", "GET", "/metrics") is None, "it was answered a moment ago"
    clock.now_s = 301.0
    refusal = gate("Bearer good", "GET", "/metrics")
    assert refusal is not None
    assert refusal.status == 503


def test_the_memory_of_tokens_is_bounded() -> None:
    cluster = Cluster()
    gate = ClusterGate(cluster, Clock())
    for number in range(1000):
        gate(f"Bearer guess-{number}", "GET", "/metrics")
    gate("Bearer guess-1000", "GET", "/metrics")
    cluster.reviews.clear()
    gate("Bearer guess-1", "GET", "/metrics")
    assert cluster.reviews == []
    gate("Bearer guess-0", "GET", "/metrics")
    assert cluster.reviews == ["user"]


@pytest.mark.parametrize("header", ["", "Bearer", "Bearer ", "Basic Zm9vOmJhcg==", "good"])
def test_what_is_no_token_asks_nobody(header: str) -> None:
    cluster = Cluster()
    refusal = ClusterGate(cluster)(header, "GET", "/metrics")
    assert refusal is not None
    assert refusal.status == 401
    assert cluster.reviews == []


# --- certificates ---


def pair(folder: Path, name: str) -> tuple[Path, Path]:
    """A certificate of this name, made by another program."""
    certificate, key = folder / f"{name}.crt", folder / f"{name}.key"
    subject = ["-subj", f"/CN={name}", "-addext", "subjectAltName=IP:127.0.0.1"]
    kind = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-x509"]
    command = ["openssl", "req", *kind, *subject, "-keyout", str(key), "-out", str(certificate)]
    subprocess.run(command, check=True, capture_output=True)
    return certificate, key


def served(port: int) -> str:
    return ssl.get_server_certificate(("127.0.0.1", port), timeout=5)


def test_certificate_of_its_own_is_for_this_host_and_is_new_each_time() -> None:
    contexts = self_signed(), self_signed()
    found = []
    for context in contexts:
        routes = metric_routes(CollectorRegistry(), Signals())
        with serving(HERE, routes, context=lambda context=context: context) as port:
            found.append(served(port))
            trusting = ssl.create_default_context(cadata=found[-1])
            # Its name and its dates hold for who trusts it.
            url = f"https://localhost:{port}/metrics"
            with urllib.request.urlopen(url, timeout=5, context=trusting) as answer:
                assert answer.status == 200
    assert found[0] != found[1]


def test_certificate_is_read_again_when_it_rotates(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """As a mounted Secret rotates: the directory behind a link becomes another."""
    for generation in ("one", "two"):
        (tmp_path / generation).mkdir()
        certificate, key = pair(tmp_path / generation, generation)
        certificate.rename(tmp_path / generation / "tls.crt")
        key.rename(tmp_path / generation / "tls.key")
    mounted = tmp_path / "mounted"
    mounted.symlink_to("one")
    files = FileCertificate(mounted / "tls.crt", mounted / "tls.key")

    def turn(to: str) -> None:
        (fresh := tmp_path / "fresh").symlink_to(to)
        os.replace(fresh, mounted)

    with serving(HERE, metric_routes(CollectorRegistry(), Signals()), context=files.context) as port:
        assert served(port) == (tmp_path / "one" / "tls.crt").read_text()
        turn("two")
        assert served(port) == (tmp_path / "two" / "tls.crt").read_text()

        # A half written pair, and none at all, leave the one before.
        (tmp_path / "broken").mkdir()
        (tmp_path / "broken" / "tls.crt").write_bytes((tmp_path / "one" / "tls.crt").read_bytes())
        (tmp_path / "broken" / "tls.key").write_bytes((tmp_path / "two" / "tls.key").read_bytes())
        for broken in ("broken", "nowhere"):
            turn(broken)
            assert served(port) == (tmp_path / "two" / "tls.crt").read_text()
            assert "the one before is" in caplog.records[-1].getMessage()
        turn("one")
        assert served(port) == (tmp_path / "one" / "tls.crt").read_text()


def test_certificate_that_is_not_there_or_no_pair(tmp_path: Path) -> None:
    certificate, key = pair(tmp_path, "one")
    _, other = pair(tmp_path, "two")
    with pytest.raises(FileNotFoundError):
        FileCertificate(tmp_path / "absent.crt", key)
    with pytest.raises(ssl.SSLError, match=r"two\.key are no certificate and its key: .*MISMATCH"):
        FileCertificate(certificate, other)


def test_client_that_speaks_no_tls_is_closed_and_others_are_served() -> None:
    own = self_signed()
    with serving(HERE, metric_routes(CollectorRegistry(), Signals()), context=lambda: own) as port:
        with pytest.raises(OSError), urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5):
            pass
        assert ask(f"https://127.0.0.1:{port}/metrics")[0] == 200


# --- on a real API server ---


@pytest.fixture(scope="module")
def plane(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ControlPlane]:
    with control_plane(tmp_path_factory.mktemp("reviews")) as running:
        admin = Admin(running)
        admin.namespace("monitoring")
        for account in ("controller", "prometheus", "gateway", "nobody"):
            named = {"name": account, "namespace": "monitoring"}
            admin.apply({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": named})
        review = [
            {"apiGroups": ["authentication.k8s.io"], "resources": ["tokenreviews"], "verbs": ["create"]},
            {
                "apiGroups": ["authorization.k8s.io"],
                "resources": ["subjectaccessreviews"],
                "verbs": ["create"],
            },
        ]
        grant(admin, "fleetopt-metrics-auth", review, "controller")
        reading = [{"nonResourceURLs": ["/metrics"], "verbs": ["get"]}]
        grant(admin, "fleetopt-metrics-reader", reading, "prometheus")
        grant(admin, "fleetopt-wake", [{"nonResourceURLs": ["/wake"], "verbs": ["post"]}], "gateway")
        yield running


@contextlib.contextmanager
def secure(api: ApiClient, signals: Signals) -> Iterator[str]:
    own, gate = self_signed(), ClusterGate(ClusterReviewer(api))
    routes = metric_routes(CollectorRegistry(), signals)
    with serving(HERE, routes, context=lambda: own, gate=gate) as port:
        yield f"https://127.0.0.1:{port}"


@needs_cluster
def test_401_403_200_on_a_real_api_server(plane: ControlPlane) -> None:
    signals = Signals()
    api = plane.api(plane.token("controller", "monitoring"))
    reviewer = ClusterReviewer(api)
    # A server that has just started has read a new role a moment later.
    prometheus = User("system:serviceaccount:monitoring:prometheus")
    wait_until(lambda: granted(reviewer, prometheus))
    with secure(api, signals) as url:
        assert ask(f"{url}/metrics")[0] == 401
        assert ask(f"{url}/metrics", "wrong") == (401, "the token is not valid\n")
        assert ask(f"{url}/metrics", elsewhere(plane))[0] == 401
        assert ask(f"{url}/metrics", plane.token("nobody", "monitoring")) == (
            403,
            "system:serviceaccount:monitoring:nobody may not get /metrics\n",
        )
        assert ask(f"{url}/metrics", plane.token("prometheus", "monitoring"))[0] == 200

        wake = f"{url}/wake?namespace=n&model=m"
        assert ask(wake, plane.token("prometheus", "monitoring"), "POST")[0] == 403
        assert signals.take_woken() == frozenset()
        assert ask(wake, plane.token("gateway", "monitoring"), "POST")[0] == 202
        assert signals.take_woken() == {("n", "m")}


def elsewhere(plane: ControlPlane) -> str:
    """A good token, for another audience."""
    body = AuthenticationV1TokenRequest(spec=V1TokenRequestSpec(audiences=["https://elsewhere"]))
    core = CoreV1Api(plane.api())
    status = core.create_namespaced_service_account_token("prometheus", "monitoring", body).status
    assert status
    return str(status.token)


def granted(reviewer: ClusterReviewer, user: User) -> bool:
    try:
        return reviewer.may(user, "get", "/metrics")
    except ClusterError:
        return False


@needs_cluster
def test_account_that_may_not_review_lets_nobody_in(plane: ControlPlane) -> None:
    with secure(plane.api(plane.token("nobody", "monitoring")), Signals()) as url:
        status, body = ask(f"{url}/metrics", plane.token("prometheus", "monitoring"))
    assert status == 503
    assert "the controller's account may not create tokenreviews" in body


@needs_cluster
def test_api_server_that_is_away_lets_nobody_in(plane: ControlPlane) -> None:
    reader = plane.token("prometheus", "monitoring")
    with secure(plane.api(), Signals()) as url:
        plane.stop()
        try:
            status, body = ask(f"{url}/metrics", reader)
        finally:
            plane.start()
        assert status == 503
        assert "the Kubernetes API does not answer" in body
        wait_until(lambda: ask(f"{url}/metrics", reader)[0] == 200)

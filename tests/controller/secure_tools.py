"""Asking a secure endpoint, and giving accounts what they may do."""

import ssl
import urllib.error
import urllib.request

from cluster_tools import Admin


def ask(url: str, token: str = "", method: str = "GET") -> tuple[int, str]:
    """Ask over TLS, taking any certificate, and return status and body."""
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    request = urllib.request.Request(url, method=method)
    if token:
        request.add_header("Authorization", token if " " in token else f"Bearer {token}")
    try:
        with urllib.request.urlopen(request, timeout=15, context=context) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            if error.code == 401:
                assert error.headers["WWW-Authenticate"] == "Bearer"
            return error.code, error.read().decode()


def grant(admin: Admin, name: str, rules: list[dict[str, object]], account: str) -> None:
    group = "rbac.authorization.k8s.io"
    meta = {"name": name}
    admin.apply({"apiVersion": f"{group}/v1", "kind": "ClusterRole", "metadata": meta, "rules": rules})
    admin.apply(
        {
            "apiVersion": f"{group}/v1",
            "kind": "ClusterRoleBinding",
            "metadata": meta,
            "roleRef": {"apiGroup": group, "kind": "ClusterRole", "name": name},
            "subjects": [{"kind": "ServiceAccount", "name": account, "namespace": "monitoring"}],
        }
    )

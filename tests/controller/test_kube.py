"""What is kept of the lists that the API server sends, and requests that never come back."""

import json
import socket
from types import SimpleNamespace

from kubernetes import client
from kubernetes.leaderelection.leaderelectionrecord import LeaderElectionRecord

from controller.kube import _items, _PatientLock


def test_lists_are_without_what_no_pass_reads() -> None:
    container = {
        "name": "vllm",
        "args": ["--max-num-seqs=4"],
        "resources": {"requests": {"nvidia.com/gpu": "1"}},
    }
    pod = {
        "metadata": {"name": "p", "labels": {"app": "vllm"}},
        "spec": {"nodeName": "n", "containers": [container]},
        "status": {"phase": "Running"},
    }
    bulk = {"managedFields": [{"fieldsV1": {"f:spec": {}}}]}
    probe = {
        "livenessProbe": {"httpGet": {"path": "/"}},
        "env": [{"name": "A", "value": "B"}],
        "volumeMounts": [],
    }
    sent = {
        "metadata": pod["metadata"] | bulk,
        "spec": {"nodeName": "n", "containers": [container | probe], "volumes": [{"name": "v"}]},
        "status": {"phase": "Running", "containerStatuses": [{"name": "vllm"}]},
    }
    text = json.dumps({"kind": "PodList", "metadata": {"resourceVersion": "1"}, "items": [sent]})
    assert _items(SimpleNamespace(data=text.encode())) == [pod]


def test_requests_about_the_lease_end_when_nothing_comes_back() -> None:
    with socket.create_server(("127.0.0.1", 0)) as hole:
        configuration = client.Configuration()
        configuration.host = f"http://127.0.0.1:{hole.getsockname()[1]}"
        configuration.retries = False
        record = LeaderElectionRecord("one", "15", "2026-01-01 00:00:00", "2026-01-01 00:00:00")
        lock = _PatientLock(client.ApiClient(configuration), "lease", "system", "one", timeout_s=0.2)
        got, error = lock.get("lease", "system")
        assert (got, error.status) == (False, 0)
        assert "timed out" in error.reason
        assert lock.create("lease", "system", record) is False

"""What is kept of the lists that the API server sends."""

import json
from types import SimpleNamespace

from controller.kube import _items


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

"""The Kubernetes API: one reading for a pass, and the writes that it decides on.

Objects are plain JSON here; nothing but this module knows the kubernetes package.
"""

from __future__ import annotations

import json
import threading
from contextlib import contextmanager
from datetime import UTC, datetime
from functools import partial
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from kubernetes import client, config
from kubernetes.client.exceptions import ApiException
from kubernetes.leaderelection import electionconfig, leaderelection
from kubernetes.leaderelection.resourcelock.leaselock import LeaseLock
from kubernetes.watch import Watch
from urllib3.exceptions import HTTPError

from controller.collect import View
from controller.crd import GROUP, KIND, PLURAL, VERSION, VariantKey, parse_variant
from controller.errors import ClusterError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from controller.crd import TargetRef, Variant

# These parts of the package have no annotations.
_CONFIG: Any = config
_WATCH: Any = Watch
_LEASE_LOCK: Any = LeaseLock
_ELECTION: Any = leaderelection.LeaderElection
_ELECTION_CONFIG: Any = electionconfig.Config

_MERGE = "application/merge-patch+json"
_APPLY = "application/apply-patch+yaml"
_FORBIDDEN, _NOT_FOUND, _CONFLICT = 403, 404, 409

# Bulky parts of pods, nodes and Deployments that no pass looks at.
_UNREAD = frozenset(
    (
        "managedFields",
        "env",
        "envFrom",
        "volumes",
        "volumeMounts",
        "livenessProbe",
        "readinessProbe",
        "startupProbe",
        "securityContext",
        "containerStatuses",
        "initContainerStatuses",
        "images",
    )
)

# For one request; a list of ten thousand pods takes a few seconds.
_TIMEOUT_S = 30.0

COMPONENT = "fleetopt-controller"


def api_client(kubeconfig: str | None) -> client.ApiClient:
    """Connect as a kubeconfig file says, or as a pod in the cluster.

    Parameters
    ----------
    kubeconfig : str or None
        Path; None: the pod's service account where there is one, else the usual kubeconfig.

    Raises
    ------
    ClusterError
        When there is neither.
    """
    configuration = client.Configuration()
    # A client that tries again by itself would make a pass longer than its interval.
    configuration.retries = False
    try:
        if kubeconfig is None:
            try:
                _CONFIG.load_incluster_config(client_configuration=configuration)
                return client.ApiClient(configuration)
            except config.ConfigException:
                pass
        _CONFIG.load_kube_config(config_file=kubeconfig, client_configuration=configuration)
    except (config.ConfigException, OSError) as error:
        raise ClusterError(f"there is no way to a cluster: {error}") from error
    return client.ApiClient(configuration)


@contextmanager
def _as_cluster_error(what: str) -> Iterator[None]:
    try:
        yield
    except ApiException as error:
        raise ClusterError(f"{what}: {error.status} {error.reason}: {_message(error)}") from error
    except (HTTPError, OSError) as error:
        raise ClusterError(f"{what}: the Kubernetes API does not answer: {error}") from error


@contextmanager
def _unless_changed() -> Iterator[None]:
    """Let pass that the object was deleted or changed since it was read."""
    try:
        yield
    except ApiException as error:
        if error.status not in (_NOT_FOUND, _CONFLICT):
            raise


def _items(answer: Any) -> list[dict[str, Any]]:
    """Objects of a list as JSON; building the package's models of thousands of pods takes seconds."""
    items: list[dict[str, Any]] = json.loads(answer.data, object_hook=_lean)["items"]
    return items


def _lean(thing: dict[str, Any]) -> dict[str, Any]:
    """Drop what nobody here reads: with it the pods of a large cluster would take most of the memory."""
    if not _UNREAD.isdisjoint(thing):
        for name in _UNREAD & thing.keys():
            del thing[name]
    return thing


def _message(error: ApiException) -> str:
    try:
        return str(json.loads(error.body or "{}").get("message", ""))[:300]
    except (ValueError, AttributeError):
        return ""


class Kubernetes:
    """A cluster: a reader of everything a pass needs, and a `controller.actuate.Writer`.

    Parameters
    ----------
    api : ApiClient
    system_namespace : str
        Where the ConfigMaps are.
    watch_namespace : str
        Where the variants are; empty: everywhere.
    """

    def __init__(self, api: client.ApiClient, system_namespace: str, watch_namespace: str = "") -> None:
        self.api = api
        self.system_namespace = system_namespace
        self.watch_namespace = watch_namespace
        self._core = client.CoreV1Api(api)
        self._custom = client.CustomObjectsApi(api)

    # --- reading ---

    def read(self) -> View:
        """Read what a pass needs.

        Raises
        ------
        ClusterError
            When anything but the nodes cannot be read, or the pods where the role does not grant them.
        """
        variants = self.variants()
        deployments = {
            (d["metadata"]["namespace"], d["metadata"]["name"]): d
            for d in self._list("apps", "v1", "deployments")
        }
        targets: dict[VariantKey, Mapping[str, Any]] = {}
        plurals: dict[tuple[str, str], str] = {}
        for document in variants:
            variant = parse_variant(document)
            key, target = variant.key, variant.target
            found = (
                deployments.get((key.namespace, target.name))
                if target.is_deployment
                else self._other_target(key.namespace, target, plurals)
            )
            if found is not None:
                targets[key] = found
        pods = self._pods()
        return View(
            variants=variants,
            targets=targets,
            pods=pods or (),
            # Who holds the GPUs of a node is as needful as the node.
            nodes=None if pods is None else self._nodes(),
            config_maps=self._config_maps(),
        )

    def variants(self) -> list[dict[str, Any]]:
        """List the VariantAutoscaling objects.

        Raises
        ------
        ClusterError
            Also where the resource is not installed.
        """
        return self._list(GROUP, VERSION, PLURAL)

    def _list(self, group: str, version: str, plural: str) -> list[dict[str, Any]]:
        with _as_cluster_error(f"list {plural}.{group}"):
            if self.watch_namespace:
                answer = self._custom.list_namespaced_custom_object(
                    group,
                    version,
                    self.watch_namespace,
                    plural,
                    _preload_content=False,
                    _request_timeout=_TIMEOUT_S,
                )
            else:
                answer = self._custom.list_cluster_custom_object(
                    group, version, plural, _preload_content=False, _request_timeout=_TIMEOUT_S
                )
            return _items(answer)

    def _other_target(
        self, namespace: str, target: TargetRef, plurals: dict[tuple[str, str], str]
    ) -> dict[str, Any] | None:
        """Read a scale target that is no Deployment, in the shape of one; None: it is not there."""
        group, _, version = target.api_version.rpartition("/")
        try:
            plural = self._plural(target, plurals)
            where = (group, version, namespace, plural, target.name)
            found: Any = self._custom.get_namespaced_custom_object(*where, _request_timeout=_TIMEOUT_S)
            scale: Any = self._custom.get_namespaced_custom_object_scale(*where, _request_timeout=_TIMEOUT_S)
        except ApiException as error:
            if error.status == _NOT_FOUND:
                return None
            raise ClusterError(f"read {target}: {error.status} {error.reason}: {_message(error)}") from error
        except (HTTPError, OSError) as error:
            raise ClusterError(f"read {target}: the Kubernetes API does not answer: {error}") from error
        pairs = (pair.partition("=") for pair in (scale["status"].get("selector") or "").split(",") if pair)
        spec = {
            **(found.get("spec") or {}),
            "replicas": scale["spec"].get("replicas", 0),
            "selector": {"matchLabels": {key: value.lstrip("=") for key, _, value in pairs}},
        }
        return {**found, "spec": spec}

    def _plural(self, target: TargetRef, plurals: dict[tuple[str, str], str]) -> str:
        """Name of the target's kind in URLs, as the server says."""
        group, _, version = target.api_version.rpartition("/")
        if (target.api_version, target.kind) not in plurals:
            resources = self._custom.get_api_resources(group, version, _request_timeout=_TIMEOUT_S).resources
            for resource in resources:
                if "/" not in resource.name:
                    plurals[target.api_version, resource.kind] = resource.name
        return plurals.get((target.api_version, target.kind), target.kind.lower())

    def _pods(self) -> Sequence[Mapping[str, Any]] | None:
        """List all pods; None where the role does not grant it, as that of the first managers."""
        with _as_cluster_error("list pods"):
            try:
                # Version 0: the server answers from its memory, as it should for a list of this size.
                answer = self._core.list_pod_for_all_namespaces(
                    resource_version="0", _preload_content=False, _request_timeout=_TIMEOUT_S
                )
            except ApiException as error:
                if error.status == _FORBIDDEN:
                    return None
                raise
            return _items(answer)

    def _nodes(self) -> Sequence[Mapping[str, Any]] | None:
        try:
            with _as_cluster_error("list nodes"):
                answer = self._core.list_node(
                    resource_version="0", _preload_content=False, _request_timeout=_TIMEOUT_S
                )
                return _items(answer)
        except ClusterError:
            # A role may well not grant it; the pass says so in a condition of every variant.
            return None

    def _config_maps(self) -> dict[str, dict[str, str]]:
        with _as_cluster_error(f"list configmaps in {self.system_namespace}"):
            answer = self._core.list_namespaced_config_map(
                self.system_namespace, _preload_content=False, _request_timeout=_TIMEOUT_S
            )
            return {item["metadata"]["name"]: item.get("data") or {} for item in _items(answer)}

    # --- writing ---

    def patch_status(self, variant: Variant, patch: dict[str, Any]) -> None:
        """Bring a variant's status up to date, unless the object was changed or deleted since it was read.

        What was decided then is not about what it says now; the next pass is, and it comes at once.
        """
        key = variant.key
        body = {"metadata": {"resourceVersion": variant.resource_version}, **patch}
        with _as_cluster_error(f"patch status of {key}"), _unless_changed():
            self._custom.patch_namespaced_custom_object_status(
                GROUP,
                VERSION,
                key.namespace,
                PLURAL,
                key.name,
                body,
                field_manager=COMPONENT,
                _content_type=_MERGE,
                _request_timeout=_TIMEOUT_S,
            )

    def scale(self, variant: Variant, replicas: int) -> None:
        """Set the replicas of a variant's target."""
        target = variant.target
        group, _, version = target.api_version.rpartition("/")
        with _as_cluster_error(f"scale {target} in {variant.key.namespace}"):
            plural = "deployments" if target.is_deployment else self._plural(target, {})
            self._custom.patch_namespaced_custom_object_scale(
                group,
                version,
                variant.key.namespace,
                plural,
                target.name,
                {"spec": {"replicas": replicas}},
                field_manager=COMPONENT,
                _content_type=_MERGE,
                _request_timeout=_TIMEOUT_S,
            )

    def own(self, variant: Variant, reference: Mapping[str, Any]) -> None:
        """Give a variant an owner, unless it was deleted since it was read.

        A server-side apply merges owners by their uid: those that others have set stay, and an earlier one of
        ours goes.
        """
        key = variant.key
        body = {
            "apiVersion": f"{GROUP}/{VERSION}",
            "kind": KIND,
            # With the uid an object of the same name that is new is no match, and none is created.
            "metadata": {
                "name": key.name,
                "namespace": key.namespace,
                "uid": variant.uid,
                "ownerReferences": [dict(reference)],
            },
        }
        with _as_cluster_error(f"set the owner of {key}"), _unless_changed():
            self._custom.patch_namespaced_custom_object(
                GROUP,
                VERSION,
                key.namespace,
                PLURAL,
                key.name,
                body,
                field_manager=COMPONENT,
                force=True,
                _content_type=_APPLY,
                _request_timeout=_TIMEOUT_S,
            )

    def record(self, variant: Variant, reason: str, message: str) -> None:
        """Say in an Event of the variant what was decided."""
        key, now = variant.key, datetime.now(UTC).isoformat()
        event = {
            "metadata": {"generateName": f"{key.name}.", "namespace": key.namespace},
            "involvedObject": {
                "apiVersion": f"{GROUP}/{VERSION}",
                "kind": KIND,
                "namespace": key.namespace,
                "name": key.name,
                "uid": variant.uid,
            },
            "reason": reason,
            "message": message[:1000],
            "type": "Normal",
            "source": {"component": COMPONENT},
            "firstTimestamp": now,
            "lastTimestamp": now,
            "count": 1,
        }
        with _as_cluster_error(f"record an event of {key}"):
            body = client.CoreV1Event.from_dict(event)
            assert body is not None
            self._core.create_namespaced_event(key.namespace, body, _request_timeout=_TIMEOUT_S)


# --- waking ---


def watch_changes(kubernetes: Kubernetes, changed: Callable[[], None], stop: threading.Event) -> None:
    """Call `changed` whenever a variant's specification or a ConfigMap changes, until `stop`.

    Changes of a status are none: the controller makes them itself. A watch that breaks is started again; what
    changes in between is seen by the next pass at the latest.

    Parameters
    ----------
    kubernetes : Kubernetes
    changed : callable
        Called from threads of their own.
    stop : Event
    """
    custom, core = client.CustomObjectsApi(kubernetes.api), client.CoreV1Api(kubernetes.api)

    def follow(
        lister: Callable[..., Any], arguments: tuple[str, ...], revision: Callable[[Any], object]
    ) -> None:
        known: dict[object, object] = {}
        while not stop.is_set():
            try:
                for event in _WATCH().stream(lister, *arguments, timeout_seconds=60, _request_timeout=90):
                    if stop.is_set():
                        return
                    thing = event["raw_object"]
                    name = (thing["metadata"].get("namespace"), thing["metadata"].get("name"))
                    now = None if event["type"] == "DELETED" else revision(thing)
                    if known.get(name) != now:
                        known[name] = now
                        changed()
            except (ApiException, HTTPError, OSError, KeyError):
                stop.wait(5.0)

    def generation(thing: Any) -> object:
        return thing["metadata"].get("uid"), thing["metadata"].get("generation")

    def data(thing: Any) -> object:
        return json.dumps(thing.get("data"), sort_keys=True)

    variants: tuple[Callable[..., Any], tuple[str, ...], Callable[[Any], object]]
    if kubernetes.watch_namespace:
        place = (GROUP, VERSION, kubernetes.watch_namespace, PLURAL)
        variants = (custom.list_namespaced_custom_object, place, generation)
    else:
        variants = (custom.list_cluster_custom_object, (GROUP, VERSION, PLURAL), generation)
    config_maps = (core.list_namespaced_config_map, (kubernetes.system_namespace,), data)
    for watched in (variants, config_maps):
        threading.Thread(target=follow, args=watched, daemon=True).start()


# --- leading ---


class _PatientLock:
    """A lease whose holder survives an API server that is away for less than the deadline.

    A request that hangs must not outlast the lease: its holder would go on while another one leads.
    """

    def __init__(
        self, api: client.ApiClient, name: str, namespace: str, identity: str, timeout_s: float
    ) -> None:
        self.name, self.namespace, self.identity = name, namespace, identity
        self._lease = _LEASE_LOCK(name, namespace, identity)
        leases = client.CoordinationV1Api(api)
        # The package's lock sets no time limit of its own.
        calls = ("read_namespaced_lease", "create_namespaced_lease", "replace_namespaced_lease")
        self._lease.api_instance = SimpleNamespace(
            **{call: partial(getattr(leases, call), _request_timeout=timeout_s) for call in calls}
        )

    def get(self, name: str, namespace: str) -> Any:
        """Whether the lease could be read, and its record or the error."""
        try:
            return self._lease.get(name, namespace)
        except (HTTPError, OSError) as error:
            return False, ApiException(status=0, reason=str(error))

    def create(self, name: str, namespace: str, election_record: Any) -> bool:
        """Whether the lease could be made."""
        try:
            return bool(self._lease.create(name, namespace, election_record))
        except (HTTPError, OSError):
            return False

    def update(self, name: str, namespace: str, updated_record: Any) -> bool:
        """Whether the lease could be renewed."""
        try:
            return bool(self._lease.update(name, namespace, updated_record))
        except (HTTPError, OSError):
            return False


def lead(
    api: client.ApiClient,
    name: str,
    namespace: str,
    identity: str,
    work: Callable[[], None],
    *,
    lease_s: int = 15,
    renew_s: int = 10,
    retry_s: int = 2,
) -> None:
    """Wait for the lease, run `work` in a thread while it is held, and return when it is lost.

    Work may still be running then: the process has to end, so that no two controllers act.

    Parameters
    ----------
    api : ApiClient
    name, namespace : str
        Of the Lease.
    identity : str
        Of this candidate.
    work : callable
    lease_s, renew_s, retry_s : int
        How long a lease counts, how long its holder tries to renew it, and the pause between tries.
    """
    rules = _ELECTION_CONFIG(
        _PatientLock(api, name, namespace, identity, renew_s / 2),
        lease_duration=lease_s,
        renew_deadline=renew_s,
        retry_period=retry_s,
        onstarted_leading=work,
        onstopped_leading=lambda: None,
    )
    _ELECTION(rules).run()

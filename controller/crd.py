"""VariantAutoscaling objects, of 2025 and of 2026, as typed values, and the rules for writing their status.

::

    object -> parse_variant -> Variant            what the user wants
    Status -> status_patch(previous) -> patch     only what changed, numbers as the CRD's patterns want them

The resource is ``variantautoscalings.llmd.ai/v1alpha1``. In 2025 the object carried the performance profile
and the Deployment had the object's name; since 2026 it points at its scale target and carries a cost. Both
are read.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

from pydantic import ValidationError

from solver.schema import ModelProfile

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

GROUP = "llmd.ai"
VERSION = "v1alpha1"
PLURAL = "variantautoscalings"
KIND = "VariantAutoscaling"

ACCELERATOR_LABEL = "inference.optimization/acceleratorName"

# Annotations of a variant that win over the controller's settings.
WINDOW_ANNOTATION = "inference.optimization/scale-down-window"
ACTUATE_ANNOTATION = "inference.optimization/actuate"
SCALE_TO_ZERO_ANNOTATION = "inference.optimization/scale-to-zero"
KEEP_ACCELERATOR_ANNOTATION = "inference.optimization/keep-accelerator"

# The cost that the CRD of 2026 writes where the user gave none; it says nothing about the price.
DEFAULT_VARIANT_COST = 10.0

# The CRD refuses shorter names of accelerators in a status.
_LEAST_ACCELERATOR_LENGTH = 2


class VariantKey(NamedTuple):
    """Name of a variant in the cluster."""

    namespace: str
    name: str

    def __str__(self) -> str:
        return f"{self.namespace}/{self.name}"


@dataclass(frozen=True)
class TargetRef:
    """What is scaled: a Deployment, or anything with a scale subresource, in the variant's namespace."""

    api_version: str
    kind: str
    name: str

    @property
    def is_deployment(self) -> bool:
        """Whether it is a Deployment of the apps group."""
        return self.kind == "Deployment" and self.api_version.startswith("apps/")

    def __str__(self) -> str:
        return f"{self.kind} {self.name}"


@dataclass(frozen=True)
class ClassRef:
    """Where the variant says that its service class is: a ConfigMap's name and a key in it."""

    name: str
    key: str


@dataclass(frozen=True)
class Variant:
    """What one VariantAutoscaling object asks for.

    Attributes
    ----------
    key : VariantKey
    uid, resource_version : str
    generation : int
    model_id : str
    target : TargetRef
        The object's own, else the Deployment of the object's name.
    accelerator_label : str
        Name of the accelerator it runs on now, as its label says; empty: no label.
    class_ref : ClassRef or None
    profiles : tuple of ModelProfile
        Those of the object itself that are sound; none since 2026.
    cost_cents_per_h : float or None
        Cost of one replica; None where none is given, or where it is the CRD's default.
    min_replicas, max_replicas : int or None
        None where not given.
    annotations : mapping of str to str
    owners : tuple of mapping
        Its owner references.
    status : mapping
        The status as it was read.
    problems : tuple of str
        What could not be used, in words.
    """

    key: VariantKey
    model_id: str
    target: TargetRef
    uid: str = ""
    resource_version: str = ""
    generation: int = 0
    accelerator_label: str = ""
    class_ref: ClassRef | None = None
    profiles: tuple[ModelProfile, ...] = ()
    cost_cents_per_h: float | None = None
    min_replicas: int | None = None
    max_replicas: int | None = None
    annotations: Mapping[str, str] = field(default_factory=dict)
    owners: tuple[Mapping[str, Any], ...] = ()
    status: Mapping[str, Any] = field(default_factory=dict)
    problems: tuple[str, ...] = ()


def parse_variant(document: Mapping[str, Any]) -> Variant:
    """Read a VariantAutoscaling object of any generation.

    A part that is not sound costs that part alone: it is left out and named in `Variant.problems`.

    Parameters
    ----------
    document : mapping
        The object as JSON.

    Raises
    ------
    KeyError
        Where the object has no name: the API server never gives such an object.
    """
    metadata, spec = document["metadata"], document.get("spec") or {}
    key = VariantKey(metadata.get("namespace", ""), metadata["name"])
    problems: list[str] = []
    model_id = str(spec.get("modelID") or "")
    if not model_id:
        problems.append("spec.modelID is empty")
    least = _count(spec, "minReplicas", problems)
    most = _count(spec, "maxReplicas", problems)
    if least is not None and most is not None and least > most:
        problems.append(f"spec.minReplicas {least} is above spec.maxReplicas {most}: taken as {most}")
        least = most
    return Variant(
        key=key,
        uid=metadata.get("uid", ""),
        resource_version=metadata.get("resourceVersion", ""),
        generation=int(metadata.get("generation") or 0),
        model_id=model_id,
        target=_target(spec.get("scaleTargetRef") or {}, key.name),
        accelerator_label=str((metadata.get("labels") or {}).get(ACCELERATOR_LABEL) or ""),
        class_ref=_class_ref(spec.get("sloClassRef") or {}),
        profiles=_profiles(model_id, spec.get("modelProfile") or {}, problems),
        cost_cents_per_h=_cost(spec.get("variantCost"), problems),
        min_replicas=least,
        max_replicas=most,
        annotations=dict(metadata.get("annotations") or {}),
        owners=tuple(metadata.get("ownerReferences") or ()),
        status=document.get("status") or {},
        problems=tuple(problems),
    )


def parse_profile(model_id: str, entry: Mapping[str, Any]) -> ModelProfile:
    """Read a profile in the form of the objects of 2025, or in that of the system JSON.

    The objects of autumn 2025 put ``decodeParms`` and ``prefillParms`` inside ``perfParms``, where the system
    JSON has the parameters of law 3.

    Raises
    ------
    ValueError
        When it is not one sound law; the message names the key.
    """
    values = dict(entry)
    inner = values.get("perfParms")
    if isinstance(inner, dict) and "decodeParms" in inner:
        del values["perfParms"]
        values |= {name: inner[name] for name in ("decodeParms", "prefillParms") if name in inner}
    try:
        return ModelProfile.model_validate({**values, "name": model_id})
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise ValueError(f"{where}: {first['msg']}" if where else first["msg"]) from error


def _target(ref: Mapping[str, Any], name: str) -> TargetRef:
    return TargetRef(
        api_version=ref.get("apiVersion") or "apps/v1",
        kind=ref.get("kind") or "Deployment",
        name=ref.get("name") or name,
    )


def _class_ref(ref: Mapping[str, Any]) -> ClassRef | None:
    if not ref.get("name") and not ref.get("key"):
        return None
    return ClassRef(name=str(ref.get("name") or ""), key=str(ref.get("key") or ""))


def _profiles(model_id: str, profile: Mapping[str, Any], problems: list[str]) -> tuple[ModelProfile, ...]:
    found: dict[str, ModelProfile] = {}
    for index, entry in enumerate(profile.get("accelerators") or []):
        where = f"spec.modelProfile.accelerators[{index}]"
        try:
            parsed = parse_profile(model_id, entry)
        except ValueError as error:
            problems.append(f"{where} is left out: {error}")
            continue
        if parsed.acc in found:
            problems.append(f"{where} is left out: {parsed.acc} is there twice")
            continue
        found[parsed.acc] = parsed
    return tuple(found.values())


def _count(spec: Mapping[str, Any], name: str, problems: list[str]) -> int | None:
    value = spec.get(name)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        problems.append(f"spec.{name} is not a number of replicas: {value!r}")
        return None
    return value


def _cost(text: Any, problems: list[str]) -> float | None:
    if text is None or text == "":
        return None
    try:
        cost = float(text)
    except (TypeError, ValueError):
        cost = math.nan
    if not (0 <= cost < math.inf):
        problems.append(f"spec.variantCost is not a cost: {text!r}")
        return None
    return None if cost == DEFAULT_VARIANT_COST else cost


# --- the owner ---


def owner_reference(variant: Variant, target_uid: str) -> dict[str, Any] | None:
    """Return the reference that makes the target the variant's controller; None: nothing is to be done.

    An object has one controller at most: where that is something else it stays. A reference to an earlier
    target of the same name is replaced.

    Parameters
    ----------
    variant : Variant
    target_uid : str
        Empty: the target is not there.
    """
    target = variant.target
    wanted = {
        "apiVersion": target.api_version,
        "kind": target.kind,
        "name": target.name,
        "uid": target_uid,
        "controller": True,
        # As the reference has it: the target's deletion does not wait for the variant's.
        "blockOwnerDeletion": False,
    }
    now = next((owner for owner in variant.owners if owner.get("controller")), None)
    if not target_uid or (now is not None and now.get("uid") == target_uid):
        return None
    is_its_own = now is None or (now.get("kind"), now.get("name")) == (target.kind, target.name)
    return wanted if is_its_own else None


# --- status ---


@dataclass(frozen=True)
class Condition:
    """One condition of a status.

    Attributes
    ----------
    type : str
        ``MetricsAvailable``, ``OptimizationReady``, ``TargetResolved`` or ``InventoryKnown``.
    status : bool
    reason : str
        One word in camel case.
    message : str
        What a person can act on.
    """

    type: str
    status: bool
    reason: str
    message: str


@dataclass(frozen=True)
class Hold:
    """Why a variant keeps what it runs.

    Attributes
    ----------
    condition : str
        Type of the condition that turns False.
    reason : str
        Its reason, one word in camel case.
    message : str
        What a person can act on.
    """

    condition: str
    reason: str
    message: str


@dataclass(frozen=True)
class CurrentAlloc:
    """What a variant runs now, and what it was seen to do."""

    accelerator: str
    replicas: int
    max_batch: int
    cost_cents_per_h: float
    itl_ms: float
    ttft_ms: float
    arrival_rate_rpm: float
    input_tokens: float
    output_tokens: float


@dataclass(frozen=True)
class DesiredAlloc:
    """What a variant is to run."""

    accelerator: str
    replicas: int


@dataclass(frozen=True)
class Status:
    """What a pass has to say about a variant.

    Attributes
    ----------
    conditions : tuple of Condition
    current : CurrentAlloc or None
        None: not known, what the status says stays.
    desired : DesiredAlloc or None
        None: nothing was decided, what the status says stays.
    applied : bool or None
        Whether the controller itself has scaled the target; None: as `desired`.
    """

    conditions: tuple[Condition, ...]
    current: CurrentAlloc | None = None
    desired: DesiredAlloc | None = None
    applied: bool | None = None


def number(value: float) -> str:
    r"""Write a number as the CRD's pattern ``^\d+(\.\d+)?$`` wants it: no sign, no exponent, no NaN.

    What is not known, NaN or infinite, and what is negative is written as 0.
    """
    return f"{value:.2f}" if 0 <= value < math.inf else "0.00"


def status_patch(variant: Variant, status: Status, now: str) -> dict[str, Any] | None:
    """Return the merge patch that brings the object's status to `status`, or None where it says so already.

    Observed figures alone (rates, latencies) are no change of importance, yet they are shown to people: they
    count as changed when their text differs. The times of conditions and of the last run move only with what
    they are about, so a quiet pass writes nothing.

    Parameters
    ----------
    variant : Variant
        With the status as it was read.
    status : Status
    now : str
        RFC 3339 time for what changes.
    """
    before = variant.status
    after: dict[str, Any] = {}
    if status.current is not None and len(status.current.accelerator) >= _LEAST_ACCELERATOR_LENGTH:
        after["currentAlloc"] = _current_document(status.current)
    if status.desired is not None:
        after["desiredOptimizedAlloc"] = _desired_document(
            status.desired, before.get("desiredOptimizedAlloc") or {}, now
        )
    if status.applied is not None:
        after["actuation"] = {"applied": status.applied}
    conditions = merged_conditions(before.get("conditions") or [], status.conditions, variant.generation, now)
    if conditions:
        after["conditions"] = conditions
    changed = {name: value for name, value in after.items() if value != before.get(name)}
    return {"status": changed} if changed else None


def _current_document(current: CurrentAlloc) -> dict[str, Any]:
    return {
        "accelerator": current.accelerator,
        "numReplicas": current.replicas,
        "maxBatch": current.max_batch,
        "variantCost": number(current.cost_cents_per_h),
        "itlAverage": number(current.itl_ms),
        "ttftAverage": number(current.ttft_ms),
        "load": {
            "arrivalRate": number(current.arrival_rate_rpm),
            "avgInputTokens": number(current.input_tokens),
            "avgOutputTokens": number(current.output_tokens),
        },
    }


def _desired_document(desired: DesiredAlloc, before: Mapping[str, Any], now: str) -> dict[str, Any]:
    document: dict[str, Any] = {"numReplicas": desired.replicas}
    if len(desired.accelerator) >= _LEAST_ACCELERATOR_LENGTH:
        document["accelerator"] = desired.accelerator
    elif before.get("accelerator"):
        # A merge patch keeps the old name: nothing runs, so nothing was chosen instead.
        document["accelerator"] = before["accelerator"]
    same = all(before.get(name) == value for name, value in document.items())
    document["lastRunTime"] = before["lastRunTime"] if same and "lastRunTime" in before else now
    return document


def merged_conditions(
    before: Sequence[Mapping[str, Any]], conditions: Sequence[Condition], generation: int, now: str
) -> list[dict[str, Any]]:
    """Put `conditions` over those that an object has; the transition time moves only with the status.

    Conditions of other types stay as they are.
    """
    by_type = {str(entry.get("type")): dict(entry) for entry in before}
    for condition in conditions:
        text = "True" if condition.status else "False"
        old = by_type.get(condition.type)
        since = old["lastTransitionTime"] if old and old.get("status") == text else now
        by_type[condition.type] = {
            "type": condition.type,
            "status": text,
            "reason": condition.reason,
            "message": condition.message,
            "observedGeneration": generation,
            "lastTransitionTime": since,
        }
    return list(by_type.values())

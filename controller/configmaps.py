"""The ConfigMaps of the system namespace as typed values: prices, service classes, profiles, limits, zero.

One bad entry costs that entry alone: every function returns what is sound and names the rest.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import yaml
from pydantic import ValidationError

from controller.crd import parse_profile
from controller.settings import Loaded, parse_duration, parse_flag
from solver.schema import ModelTarget, ServiceClass

if TYPE_CHECKING:
    from collections.abc import Mapping

    from controller.crd import ClassRef
    from solver.schema import ModelProfile

ACCELERATORS = "accelerator-unit-costs"
CLASSES = "service-classes-config"
PROFILES = "model-profiles"
CAPACITY = "accelerator-capacity"
# The manager of each release prefixes this with its own name.
SETTINGS_SUFFIX = "variantautoscaling-config"
ZERO_SUFFIX = "model-scale-to-zero-config"


@dataclass(frozen=True)
class AcceleratorCost:
    """A line of the price list.

    Attributes
    ----------
    name : str
    device : str
        What nodes call the card.
    cost_cents_per_h : float
        Of one card, >= 0.
    """

    name: str
    device: str
    cost_cents_per_h: float


@dataclass(frozen=True)
class ClassEntry:
    """A service class, and the key of the ConfigMap that it stands under."""

    key: str
    service_class: ServiceClass

    @cached_property
    def models(self) -> frozenset[str]:
        """Models that it lists."""
        return frozenset(target.model for target in self.service_class.model_targets)


@dataclass(frozen=True)
class ZeroRule:
    """Whether a model may have no replicas.

    Attributes
    ----------
    model_id, namespace : str
        That it is about; empty: all.
    enabled : bool or None
    retention_s : float or None
        Time without traffic before the last replica goes, >= 0. None: as the next more general rule says.
    """

    model_id: str = ""
    namespace: str = ""
    enabled: bool | None = None
    retention_s: float | None = None


def parse_accelerators(data: Mapping[str, str]) -> Loaded[tuple[AcceleratorCost, ...]]:
    """Read the price list: accelerator -> ``{"device": ..., "cost": ...}`` with the cost in cents/h."""
    found: list[AcceleratorCost] = []
    problems: list[str] = []
    for name in sorted(data):
        try:
            entry = json.loads(data[name])
            device, cost = str(entry["device"]), float(entry.get("cost", math.nan))
            if not device or not (0 <= cost < math.inf):
                raise ValueError("a device and a cost from 0 are needed")
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            problems.append(f"{ACCELERATORS}[{name}] is left out: {_reason(error)}")
            continue
        found.append(AcceleratorCost(name, device, cost))
    return Loaded(tuple(found), tuple(problems))


def parse_classes(data: Mapping[str, str]) -> Loaded[tuple[ClassEntry, ...]]:
    """Read the service classes, most important first, then by name.

    A target that is not sound costs that target alone. Of two classes with one name the first key counts.
    """
    found: dict[str, ClassEntry] = {}
    problems: list[str] = []
    for key in sorted(data):
        where = f"{CLASSES}[{key}]"
        try:
            entry = _mapping(_yaml(data[key]))
            service_class = ServiceClass.model_validate(
                {"name": entry.get("name"), "priority": entry.get("priority", 100)}
            )
        except (yaml.YAMLError, ValueError) as error:
            problems.append(f"{where} is left out: {_reason(error)}")
            continue
        if service_class.name in found:
            problems.append(f"{where} is left out: class {service_class.name} is there already")
            continue
        targets: dict[str, ModelTarget] = {}
        for index, raw in enumerate(entry.get("data") or []):
            try:
                target = ModelTarget.model_validate(_mapping(raw))
            except ValueError as error:
                problems.append(f"{where}.data[{index}] is left out: {_reason(error)}")
                continue
            if target.model in targets:
                problems.append(f"{where}.data[{index}] is left out: {target.model} is there already")
                continue
            targets[target.model] = target
        found[service_class.name] = ClassEntry(
            key, service_class.model_copy(update={"model_targets": list(targets.values())})
        )
    ordered = sorted(found.values(), key=lambda e: (e.service_class.priority, e.service_class.name))
    return Loaded(tuple(ordered), tuple(problems))


def parse_profiles(data: Mapping[str, str]) -> Loaded[tuple[ModelProfile, ...]]:
    """Read profiles for variants that carry none: any key -> YAML list of profiles with ``name`` and ``acc``.

    Each is written as in ``modelData.models`` of the system JSON; one profile for each model and accelerator.
    """
    found: dict[tuple[str, str], ModelProfile] = {}
    problems: list[str] = []
    for key in sorted(data):
        try:
            entries = _yaml(data[key])
            if not isinstance(entries, list):
                raise ValueError("a list of profiles is needed")
        except (yaml.YAMLError, ValueError) as error:
            problems.append(f"{PROFILES}[{key}] is left out: {_reason(error)}")
            continue
        for index, entry in enumerate(entries):
            where = f"{PROFILES}[{key}][{index}]"
            try:
                profile = parse_profile(str(_mapping(entry).get("name") or ""), entry)
            except ValueError as error:
                problems.append(f"{where} is left out: {_reason(error)}")
                continue
            if (profile.name, profile.acc) in found:
                problems.append(f"{where} is left out: {profile.name} on {profile.acc} is there already")
                continue
            found[profile.name, profile.acc] = profile
    return Loaded(tuple(found.values()), tuple(problems))


def parse_capacity(data: Mapping[str, str]) -> Loaded[dict[str, int]]:
    """Read upper limits of cards: device or accelerator -> number. What is not there has no such limit."""
    found: dict[str, int] = {}
    problems: list[str] = []
    for name in sorted(data):
        try:
            count = int(data[name])
            if count < 0:
                raise ValueError("it is negative")
        except ValueError as error:
            problems.append(f"{CAPACITY}[{name}] is left out: {error}")
            continue
        found[name] = count
    return Loaded(found, tuple(problems))


def parse_zero_rules(data: Mapping[str, str]) -> Loaded[tuple[ZeroRule, ...]]:
    """Read who may have no replicas: key ``default`` for all, any other key for the model that it names.

    An entry is YAML with ``model_id``, ``namespace``, ``enable_scale_to_zero`` and ``retention_period`` (a Go
    duration), each optional but the model.
    """
    found: list[ZeroRule] = []
    problems: list[str] = []
    for key in sorted(data):
        try:
            entry = _mapping(_yaml(data[key]))
            model_id = "" if key == "default" else str(entry.get("model_id") or "")
            if key != "default" and not model_id:
                raise ValueError("model_id is missing")
            enabled, retention = entry.get("enable_scale_to_zero"), entry.get("retention_period")
            found.append(
                ZeroRule(
                    model_id,
                    "" if key == "default" else str(entry.get("namespace") or ""),
                    None if enabled is None else parse_flag(str(enabled)),
                    None if retention is None else parse_duration(str(retention)),
                )
            )
        except (yaml.YAMLError, ValueError) as error:
            problems.append(f"{ZERO_SUFFIX}[{key}] is left out: {_reason(error)}")
    return Loaded(tuple(found), tuple(problems))


def zero_rule(namespace: str, model_id: str, rules: tuple[ZeroRule, ...], otherwise: ZeroRule) -> ZeroRule:
    """Merge the rules about a model: one with its namespace wins over one for its model, then the default."""
    about = [r for r in rules if r.model_id in ("", model_id) and r.namespace in ("", namespace)]
    about.sort(key=lambda rule: (not rule.model_id, not rule.namespace))
    about.append(otherwise)
    return ZeroRule(
        model_id,
        namespace,
        next((rule.enabled for rule in about if rule.enabled is not None), None),
        next((rule.retention_s for rule in about if rule.retention_s is not None), None),
    )


def class_of(model_id: str, ref: ClassRef | None, entries: tuple[ClassEntry, ...]) -> ServiceClass | None:
    """Find the service class of a model: that of `ref` when it resolves, else the first that lists the model.

    A reference resolves when its key is a key of the ConfigMap or, in any case, a class's name, or when its
    name is a class's name, and that class lists the model. Samples in the wild carry references that do not.

    Parameters
    ----------
    model_id : str
    ref : ClassRef or None
    entries : tuple of ClassEntry
        As `parse_classes` orders them.
    """
    listing = [entry for entry in entries if model_id in entry.models]
    if ref is not None:
        for entry in listing:
            name = entry.service_class.name.lower()
            if (ref.key and ref.key == entry.key) or name in (ref.key.lower(), ref.name.lower()):
                return entry.service_class
    return listing[0].service_class if listing else None


def _yaml(text: str) -> Any:
    """Read YAML, with libyaml where it is there: without it the classes of 1000 models take half a second."""
    return yaml.load(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))


def _mapping(value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ValueError("an object with keys is needed")
    return value


def _reason(error: Exception) -> str:
    if isinstance(error, ValidationError):
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        return f"{where}: {first['msg']}"
    if isinstance(error, KeyError):
        return f"{error.args[0]} is missing"
    return " ".join(str(error).split())

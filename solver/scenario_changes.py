"""The changes of a scenario, made to a system document as it came: raw JSON, keys in any case."""

from __future__ import annotations

import copy
import difflib
import fnmatch
import json
from typing import TYPE_CHECKING, Any

from solver.errors import InputError, Problem

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from solver.scenario_document import Change, Json, PriceChange, ScaleLoad


def apply(system: Json, changes: Iterable[tuple[str, Change]]) -> Json:
    """Return a copy of `system` with the changes made, in order.

    Parameters
    ----------
    system : dict
        A system document, with or without the outer ``system``.
    changes : iterable of (str, Change)
        Each with its path, for errors.

    Raises
    ------
    InputError
        If a pattern matches nothing, GPUs would fall below 0, or a model would lose its last profile.
    """
    changed = copy.deepcopy(system)
    parts = SystemDocument(changed)
    for where, change in changes:
        ((kind, value),) = [(name, value) for name, value in change if value is not None]
        _MAKE[kind](parts, value, f"{where}.{kind}")
    return changed


class SystemDocument:
    """The lists of a system document, whatever the case of its keys; rows are those of the document.

    Parameters
    ----------
    document : dict
        With or without the outer ``system``. Parts that it lacks are empty.

    Raises
    ------
    InputError
        From a list that is none, or whose rows are no objects.
    """

    def __init__(self, document: Json) -> None:
        inner = get(document, "system")
        self.root: Json = inner if isinstance(inner, dict) else document

    @property
    def accelerators(self) -> list[Json]:
        """Rows of the accelerators."""
        return self._rows("acceleratorData", "accelerators")

    @property
    def gpus(self) -> list[Json]:
        """Rows of the GPU counts."""
        return self._rows("capacityData", "count")

    @property
    def profiles(self) -> list[Json]:
        """Rows of the model profiles."""
        return self._rows("modelData", "models")

    @property
    def servers(self) -> list[Json]:
        """Rows of the servers."""
        return self._rows("serverData", "servers")

    def add_type(self, gpu_type: str) -> Json:
        """Count a further GPU type, from 0."""
        rows = _child(_child(self.root, "capacityData", {}), "count", [])
        rows.append({"type": gpu_type, "count": 0})
        row: Json = rows[-1]
        return row

    def _rows(self, part: str, name: str) -> list[Json]:
        section = get(self.root, part, {})
        rows = get(section, name, []) if isinstance(section, dict) else None
        if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
            raise InputError([Problem(f"system.{part}.{name}", "", "a list of objects")])
        return rows


def get(node: Json, name: str, default: Any = None) -> Any:
    """Value of the key of `node` that is `name` in any case."""
    return node.get(_key(node, name), default)


def _key(node: Json, name: str) -> str:
    """Find the key of `node` that is `name` in any case, else `name` itself."""
    return next((key for key in node if key.lower() == name.lower()), name)


def _child(node: Json, name: str, empty: Any) -> Any:
    return node.setdefault(_key(node, name), empty)


def _merge(node: Json, values: Json) -> None:
    node.update({_key(node, name): value for name, value in values.items()})


def _number(row: Json, name: str, where: str) -> float:
    """Read a number of the system, which may be a string there; 0 where it is absent."""
    value = get(row, name, 0.0)
    try:
        return float(value)
    except (TypeError, ValueError):
        raise InputError([Problem(where, json.dumps(value), f"a system whose {name} is a number")]) from None


def _matching(rows: Sequence[Json], field: str, pattern: str, where: str) -> list[Json]:
    """Find the rows whose `field` matches `pattern`; there must be some."""
    found = [row for row in rows if fnmatch.fnmatchcase(str(get(row, field)), pattern)]
    if not found:
        raise InputError([_no_match(pattern, {str(get(row, field)) for row in rows}, where)])
    return found


def _no_match(name: str, known: set[str], where: str) -> Problem:
    close = difflib.get_close_matches(name, sorted(known), n=1)
    expected = f"did you mean {close[0]}?" if close else f"one of {', '.join(sorted(known))}"
    return Problem(where, json.dumps(name), expected)


def _scale_load(system: SystemDocument, scale: ScaleLoad, where: str) -> None:
    servers = _matching(system.servers, "name", scale.server, f"{where}.server")
    servers = _matching(servers, "class", scale.class_name, f"{where}.class")
    for server in _matching(servers, "model", scale.model, f"{where}.model"):
        load = _load(server)
        _merge(load, {"arrivalRate": _number(load, "arrivalRate", where) * scale.factor})


def _set_load(system: SystemDocument, loads: dict[str, Json], where: str) -> None:
    for pattern, values in loads.items():
        for server in _matching(system.servers, "name", pattern, where):
            _merge(_load(server), values)


def _load(server: Json) -> Json:
    load: Json = _child(_child(server, "currentAlloc", {}), "load", {})
    return load


def _add_gpus(system: SystemDocument, counts: dict[str, int], where: str) -> None:
    for gpu_type, added in counts.items():
        row = _gpu_row(system, gpu_type, f"{where}.{gpu_type}")
        there = int(_number(row, "count", where))
        if there + added < 0:
            expected = f"{-there} or more: there are {there}"
            raise InputError([Problem(f"{where}.{gpu_type}", str(added), expected)])
        _merge(row, {"count": there + added})


def _set_gpus(system: SystemDocument, counts: dict[str, int], where: str) -> None:
    for gpu_type, count in counts.items():
        _merge(_gpu_row(system, gpu_type, f"{where}.{gpu_type}"), {"count": count})


def _gpu_row(system: SystemDocument, gpu_type: str, where: str) -> Json:
    """Find the capacity row of a type; a type that only accelerators name starts at 0 GPUs."""
    known = {str(get(row, "type", get(row, "name"))) for row in system.accelerators}
    for row in system.gpus:
        if get(row, "type") == gpu_type:
            return row
    if gpu_type not in known:
        known |= {str(get(row, "type")) for row in system.gpus}
        raise InputError([_no_match(gpu_type, known, where)])
    return system.add_type(gpu_type)


def _withdraw_accelerator(system: SystemDocument, patterns: Sequence[str], where: str) -> None:
    """Drop the profiles; the accelerators stay known, for the servers that run on them now."""
    for number, pattern in enumerate(patterns):
        withdrawn = _matching(system.accelerators, "name", pattern, f"{where}[{number}]")
        names = {get(row, "name") for row in withdrawn}
        left = [row for row in system.profiles if get(row, "acc") not in names]
        orphans = {str(get(row, "name")) for row in system.profiles} - {str(get(row, "name")) for row in left}
        if orphans:
            expected = (
                f"accelerators that are not the last of a model: {min(orphans)} would have none "
                "(set_gpus to 0 leaves it unserved)"
            )
            raise InputError([Problem(f"{where}[{number}]", json.dumps(pattern), expected)])
        system.profiles[:] = left


def _price(system: SystemDocument, change: PriceChange, where: str) -> None:
    for pattern, cost in change.set.items():
        for row in _matching(system.accelerators, "name", pattern, f"{where}.set"):
            _merge(row, {"cost": cost})
    for pattern, factor in change.scale.items():
        for row in _matching(system.accelerators, "name", pattern, f"{where}.scale"):
            _merge(row, {"cost": _number(row, "cost", where) * factor})


def _optimizer(system: SystemDocument, values: Json, _where: str) -> None:
    _merge(_child(_child(system.root, "optimizerData", {}), "optimizer", {}), values)


def _server(system: SystemDocument, servers: dict[str, Json], where: str) -> None:
    for pattern, values in servers.items():
        for server in _matching(system.servers, "name", pattern, where):
            _merge(server, values)


_MAKE: dict[str, Callable[[SystemDocument, Any, str], None]] = {
    "scale_load": _scale_load,
    "set_load": _set_load,
    "add_gpus": _add_gpus,
    "set_gpus": _set_gpus,
    "withdraw_accelerator": _withdraw_accelerator,
    "price": _price,
    "optimizer": _optimizer,
    "server": _server,
}

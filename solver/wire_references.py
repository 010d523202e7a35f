"""What a system document must agree on with itself: names used once, references that lead somewhere.

Problems are found in the canonical JSON and not in the validated types, so that they are told together with
the problems of shape; a part whose shape is wrong is passed over here. Warnings need a sound system.
"""

from __future__ import annotations

import json
import math
from functools import cache
from itertools import repeat
from typing import TYPE_CHECKING, Any

from pydantic import TypeAdapter, ValidationError

from solver.wire_parse import did_you_mean

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from solver.errors import Problem
    from solver.schema import System
    from solver.wire_parse import Document, Loc

    Rows = list[tuple[Loc, dict[str, Any]]]

_FLAG = TypeAdapter(bool)

# Comparing strings is slow: only so many unknown names get a "did you mean".
_MAX_HINTS = 20


def reference_problems(document: Document, root: Loc) -> list[Problem]:
    """Find names used twice, references to nothing, classes that disagree and a missing inventory.

    Parameters
    ----------
    document : Document
        Of a system, or of an object that has it at `root`.
    root : tuple
        Where the system is.
    """
    system = document.tidy
    for key in root:
        system = system.get(key) if isinstance(system, dict) else None
    if not isinstance(system, dict):
        return []
    accelerators = _rows(system, root, "acceleratorData", "accelerators")
    profiles = _rows(system, root, "modelData", "models")
    classes = _rows(system, root, "serviceClassData", "serviceClasses")
    servers = _rows(system, root, "serverData", "servers")
    targets = [
        ((*loc, "modelTargets", index), {"class": entry.get("name")} | target)
        for loc, entry in classes or []
        for index, target in enumerate(_objects(entry.get("modelTargets")))
    ]
    return [
        *_doubled(document, accelerators, "name"),
        *_doubled(document, _rows(system, root, "capacityData", "count"), "type"),
        *_doubled(document, _rows(system, root, "capacityData", "nodes"), "name"),
        *_doubled(document, profiles, "name", "acc"),
        *_doubled(document, targets, "class", "model"),
        *_doubled(document, servers, "name"),
        *_disagreeing(document, classes, "priority"),
        *_disagreeing(document, classes, "headroom"),
        *_unknown_names(document, servers, "class", _names(classes), "the name of a service class"),
        *_unknown_names(
            document, servers, "model", _names(profiles), "the name of a model that has a profile"
        ),
        *_unknown_names(
            document, _current(servers), "accelerator", _names(accelerators), "the name of an accelerator"
        ),
        *_unknown_names(
            document, _limits(servers), "accelerator", _names(accelerators), "the name of an accelerator"
        ),
        *_doubled(document, _limits(servers), "server", "accelerator"),
        *_missing_capacity(document, root, system),
    ]


def _objects(rows: Any) -> list[dict[str, Any]]:
    """Return the rows of a list; an empty object for each one that is no object."""
    return [row if isinstance(row, dict) else {} for row in rows] if isinstance(rows, list) else []


def _rows(system: dict[str, Any], root: Loc, section: str, key: str) -> Rows | None:
    """List the objects of a section with their places; None where the section is missing or no object."""
    holder = system.get(section)
    if not isinstance(holder, dict):
        return None
    return [((*root, section, key, index), row) for index, row in enumerate(_objects(holder.get(key)))]


def _current(servers: Rows | None) -> Rows:
    """List the current allocations of the servers, and their parts."""
    found: Rows = []
    for loc, server in servers or []:
        alloc = server.get("currentAlloc")
        if isinstance(alloc, dict):
            place = (*loc, "currentAlloc")
            found.append((place, alloc))
            found += [((*place, "parts", i), part) for i, part in enumerate(_objects(alloc.get("parts")))]
    return found


def _limits(servers: Rows | None) -> Rows:
    """List the limits of replicas of the servers."""
    return [
        ((*loc, "replicaLimits", i), {"server": server.get("name")} | limit)
        for loc, server in servers or []
        for i, limit in enumerate(_objects(server.get("replicaLimits")))
    ]


def _names(rows: Rows | None) -> set[str] | None:
    """Collect the names in `rows`; None where they are not known."""
    return None if rows is None else {name for _, row in rows if isinstance(name := row.get("name"), str)}


def _doubled(document: Document, rows: Rows | None, *keys: str) -> list[Problem]:
    """Find each row whose `keys` together occurred before, at the last of them."""
    first: dict[tuple[object, ...], Loc] = {}
    problems = []
    for loc, row in rows or []:
        name = tuple(map(row.get, keys))
        if all(map(isinstance, name, repeat(str))) and all(name) and first.setdefault(name, loc) is not loc:
            place = document.path((*first[name], keys[-1]))
            what = " and ".join(keys)
            problems.append(document.problem((*loc, keys[-1]), f"a {what} of its own; {place} has the same"))
    return problems


def _disagreeing(document: Document, classes: Rows | None, key: str) -> list[Problem]:
    """Find each entry of a class whose `key` is not that of an earlier entry."""
    first: dict[str, tuple[Loc, float | str]] = {}
    problems = []
    for loc, entry in classes or []:
        name, given = entry.get("name"), entry.get(key)
        if not isinstance(name, str) or given is None:
            continue
        number = _number(given)
        value = json.dumps(given, sort_keys=True, default=str) if number is None else number
        earlier, expected = first.setdefault(name, (loc, value))
        if value != expected:
            place = document.path((*earlier, key))
            shown = f"{expected:g}" if isinstance(expected, float) else expected
            text = f"one {key} for a class; {name!r} has {shown} at {place}"
            problems.append(document.problem((*loc, key), text))
    return problems


def _number(value: Any) -> float | None:
    """Read a number of the wire; None for what is no number or not finite."""
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None


def _unknown_names(
    document: Document, rows: Rows | None, key: str, known: set[str] | None, expected: str
) -> list[Problem]:
    """Find each row whose `key` is a name that is not `known`; an empty name refers to nothing."""
    if known is None:
        return []
    hint = _hints(known)
    return [
        document.problem((*loc, key), expected + hint(name))
        for loc, row in rows or []
        if isinstance(name := row.get(key), str) and name and name not in known
    ]


def _hints(known: Iterable[str]) -> Callable[[str], str]:
    """Return `did_you_mean` among `known`, for the first few names."""
    names = sorted(known)
    asked: set[str] = set()

    @cache
    def hint(name: str) -> str:
        asked.add(name)
        return did_you_mean(name, names) if len(asked) <= _MAX_HINTS else ""

    return hint


def _missing_capacity(document: Document, root: Loc, system: dict[str, Any]) -> list[Problem]:
    """Find that nothing says which GPUs there are."""
    options = system.get("optimizerData")
    options = options.get("optimizer") if isinstance(options, dict) else None
    unlimited = options.get("unlimited", False) if isinstance(options, dict) else False
    try:
        unlimited = _FLAG.validate_python(unlimited)
    except ValidationError:
        return []  # Told as a problem of its own; what was meant is not known.
    if unlimited or "capacityData" in system:
        return []
    place = document.path((*root, "optimizerData", "optimizer", "unlimited"))
    return [document.problem((*root, "capacityData"), f"required: the GPUs there are, or {place} true")]


class _Notes:
    """Warnings, equal ones together."""

    def __init__(self, document: Document, root: Loc) -> None:
        self._document = document
        self._root = root
        self._found: dict[str, tuple[Loc, int]] = {}

    def add(self, loc: Loc, text: str) -> None:
        """Note `text` about the value at `loc`, seen from the system."""
        first, count = self._found.get(text, ((*self._root, *loc), 0))
        self._found[text] = (first, count + 1)

    def lines(self) -> list[str]:
        """One line for each text, at the first place, or at all places as a pattern with their number."""
        document = self._document
        return [
            f"{document.path(loc)}: {text}"
            if count == 1
            else f"{document.pattern(loc)}: {text} ({count} times)"
            for text, (loc, count) in self._found.items()
        ]


def warnings_about(document: Document, root: Loc, system: System) -> list[str]:
    """Say what in a sound system may not be as it was meant; each line begins with a JSON path."""
    notes = _Notes(document, root)
    _note_priorities(notes, system)
    _note_unused_profiles(notes, system)
    _note_missing_targets(notes, system)
    _note_uncounted_types(notes, system)
    _note_converted_loads(notes, system)
    unknown = [
        f"{pattern}: unknown key, ignored{f' ({count} times)' if count > 1 else ''}{hint}"
        for pattern, hint, count in document.unknown()
    ]
    return unknown + notes.lines()


def _note_priorities(notes: _Notes, system: System) -> None:
    for index, entry in enumerate(system.service_class_data.service_classes):
        if not 1 <= entry.priority <= 100:
            loc = ("serviceClassData", "serviceClasses", index, "priority")
            notes.add(loc, f"priority {entry.priority} is outside 1..100: counted as 100")


def _note_unused_profiles(notes: _Notes, system: System) -> None:
    known = {accelerator.name for accelerator in system.accelerator_data.accelerators}
    hint = _hints(known)
    for index, profile in enumerate(system.model_data.models):
        if profile.acc not in known:
            loc = ("modelData", "models", index, "acc")
            notes.add(loc, f"no accelerator {profile.acc!r}: profile unused{hint(profile.acc)}")


def _note_missing_targets(notes: _Notes, system: System) -> None:
    promised = {
        (entry.name, target.model)
        for entry in system.service_class_data.service_classes
        for target in entry.model_targets
        if not target.is_empty
    }
    for index, server in enumerate(system.server_data.servers):
        if (server.class_name, server.model) not in promised:
            loc = ("serverData", "servers", index, "model")
            pair = f"class {server.class_name!r} has no targets for {server.model!r}"
            notes.add(loc, f"{pair}: only stability limits its rate")


def _note_uncounted_types(notes: _Notes, system: System) -> None:
    if system.optimizer_data.optimizer.unlimited:
        return
    capacity = system.capacity_data
    counted = {row.type for row in capacity.count} | {node.type for node in capacity.nodes}
    hint = _hints(counted)
    for index, accelerator in enumerate(system.accelerator_data.accelerators):
        if accelerator.type not in counted:
            loc = ("acceleratorData", "accelerators", index, "type")
            text = (
                f"type {accelerator.type!r} is not in capacityData: counted as 0 GPUs{hint(accelerator.type)}"
            )
            notes.add(loc, text)


def _note_converted_loads(notes: _Notes, system: System) -> None:
    laws: dict[str, set[int]] = {}
    for profile in system.model_data.models:
        laws.setdefault(profile.name, set()).add(profile.law)
    for index, server in enumerate(system.server_data.servers):
        load = server.current_alloc.load
        loc = ("serverData", "servers", index, "currentAlloc", "load")
        has_in_out = bool(load.avg_in_tokens or load.avg_out_tokens)
        if 1 in laws[server.model] and has_in_out and not load.avg_length:
            notes.add(loc, "no avgLength: law 1 takes avgOutTokens")
        if laws[server.model] & {2, 3} and load.avg_length and not has_in_out:
            notes.add(loc, "no avgInTokens and avgOutTokens: laws 2 and 3 take avgLength as output, no input")

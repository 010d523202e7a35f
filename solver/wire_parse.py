"""Read a JSON document into a pydantic model: keys in any case, every problem at once, the user's own paths.

::

    bytes -> decode -> Document(raw, shape) -> validate -> model, [Problem]
                       canonical keys, no nulls, unknown keys counted

Nothing here knows what a system is; `solver.schema` does. A location (`Loc`) is a tuple of canonical keys and
list indices; `Document.path` turns it into the path that the user wrote.
"""

from __future__ import annotations

import difflib
import gc
import json
import re
from collections import Counter
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar, get_args

from pydantic import AliasChoices, BaseModel, ValidationError

from solver.errors import InputError, Problem

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

Loc = tuple[str | int, ...]
M = TypeVar("M", bound=BaseModel)

# Long enough for a name or a small object, short enough for a line of text.
_VALUE_LENGTH = 80

# Only so many unknown keys are told apart; a document may be made of nothing else.
_MAX_UNKNOWN = 100

# Types whose values pydantic reads as they are meant. Not here: None, which counts as absent, and bool, which
# pydantic would take for the number 0 or 1.
_PLAIN = frozenset((str, int, float, dict, list))

# In place of true or false where that is no value: wrong for every field.
_NOT_A_FLAG = object()

# What is expected, by pydantic's error type (https://docs.pydantic.dev/latest/errors/validation_errors/).
_EXPECTED = {
    "finite_number": "a finite number",
    "float_type": "a number",
    "float_parsing": "a number",
    "int_type": "a whole number",
    "int_parsing": "a whole number",
    "int_parsing_size": "a whole number of fewer digits",
    "int_from_float": "a whole number",
    "greater_than": "a number above {gt:g}",
    "greater_than_equal": "a number of at least {ge:g}",
    "less_than_equal": "a number of at most {le:g}",
    "string_type": "a string",
    "string_too_short": "a string that is not empty",
    "bool_type": "true or false",
    "bool_parsing": "true or false",
    "list_type": "a list",
    "dict_type": "an object",
    "model_type": "an object",
    "literal_error": "one of {expected}",
    # A rule over several fields of a model, raised by the model itself with this error type.
    "rule": "{expected}",
}


@dataclass(frozen=True)
class Shape:
    """What keys an object may have, taken from a pydantic model.

    Attributes
    ----------
    names : mapping of str to str
        Lower-case key to canonical key; a synonym maps to the key it stands for.
    keys : frozenset of str
        The canonical keys.
    flags : frozenset of str
        Keys whose value is true or false.
    nested : mapping of str to Shape
        The keys that hold an object, or a list of objects, and the shape of those.
    meaning : mapping of str to str
        Description of each key.
    inline : str or None
        A key of `nested`: a list whose only item may be written inline, its keys beside those of this object.
        A model says so with a class variable of this name.
    """

    names: Mapping[str, str]
    keys: frozenset[str]
    flags: frozenset[str]
    nested: Mapping[str, Shape]
    meaning: Mapping[str, str]
    inline: str | None

    @staticmethod
    def of(model: type[BaseModel]) -> Shape:
        """Shape of `model` and, recursively, of the models in its fields."""
        names: dict[str, str] = {}
        flags: set[str] = set()
        nested: dict[str, Shape] = {}
        meaning: dict[str, str] = {}
        for field in model.model_fields.values():
            alias = field.validation_alias
            spellings = (
                [str(choice) for choice in alias.choices] if isinstance(alias, AliasChoices) else [str(alias)]
            )
            key = spellings[0]
            names.update((spelling.lower(), key) for spelling in spellings)
            meaning[key] = field.description or key
            if (inner := _model_in(field.annotation)) is not None:
                nested[key] = Shape.of(inner)
            elif field.annotation is bool:
                flags.add(key)
        inline = getattr(model, "inline", None)
        return Shape(names, frozenset(meaning), frozenset(flags), nested, meaning, inline)

    def name(self, key: object) -> str | None:
        """Canonical spelling of `key`; None for a key that does not belong here."""
        return self.names.get(str(key).lower())


_NO_SHAPE = Shape({}, frozenset(), frozenset(), {}, {}, None)


def _model_in(annotation: Any) -> type[BaseModel] | None:
    """Return the model in an annotation such as ``list[M]`` or ``M | None``."""
    if arguments := get_args(annotation):
        return next((found for argument in arguments if (found := _model_in(argument)) is not None), None)
    return annotation if isinstance(annotation, type) and issubclass(annotation, BaseModel) else None


@contextmanager
def collector_paused() -> Iterator[None]:
    """Pause the cycle collector: a request makes many objects and next to no cycles.

    The collector would walk all of them again and again: more than half of the time of reading 10,000
    servers, and an eighth of that of sizing and solving them.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def decode(body: bytes | str) -> Any:
    """Read JSON text; ``NaN`` and ``Infinity`` pass here, the model refuses them with a path.

    Raises
    ------
    InputError
        When `body` is not JSON: one problem at ``$`` with line and column. When an object has a key twice.
    """
    twice: list[str] = []

    def checked(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        # JSON leaves open which of two equal keys counts; to pick one would lose the other in silence.
        mapping = dict(pairs)
        if len(mapping) < len(pairs):
            twice.extend(key for key, count in Counter(key for key, _ in pairs).items() if count > 1)
        return mapping

    try:
        value = json.loads(body, object_pairs_hook=checked)
    except json.JSONDecodeError as error:
        near = error.doc[error.pos : error.pos + 20]
        expected = f"valid JSON; line {error.lineno} column {error.colno}: {error.msg}"
        raise InputError([Problem("$", json.dumps(near) if near else "", expected)]) from error
    except RecursionError as error:
        raise InputError([Problem("$", "", "JSON that is nested less deeply")]) from error
    except UnicodeDecodeError as error:
        raise InputError([Problem("$", "", "valid JSON in UTF-8")]) from error
    except ValueError as error:
        # Python reads no integer of more than 4300 digits.
        raise InputError([Problem("$", "", "numbers of fewer digits")]) from error
    if twice:
        raise InputError(
            [Problem("$", json.dumps(key), "each key once in an object") for key in dict.fromkeys(twice)]
        )
    return value


class Document:
    """A JSON value read against a shape.

    Parameters
    ----------
    raw : JSON value
        As `decode` gives it; it is not changed.
    shape : Shape
        Of the model that it is to become.

    Attributes
    ----------
    tidy : JSON value
        The same with canonical keys and without nulls and unknown keys; parts that were so already are shared
        with `raw`.
    problems : list of Problem
        Keys that one object has in two spellings.
    """

    def __init__(self, raw: Any, shape: Shape) -> None:
        self.raw = raw
        self.shape = shape
        self.problems: list[Problem] = []
        # By the keys on the way, without indices: how many, where the first one is and what was known there.
        self._unknown: dict[Loc, tuple[int, Loc, Shape]] = {}
        self._trail: list[str | int] = []
        self.tidy = self._object(raw, shape)

    def unknown(self) -> list[tuple[str, str, int]]:
        """List the unknown keys: pattern such as ``$.servers[*].foo``, a hint what was meant, how often."""
        return [
            (self.pattern(loc), did_you_mean(str(loc[-1]), shape.keys), count)
            for count, loc, shape in self._unknown.values()
        ]

    def problem(self, loc: Loc, expected: str) -> Problem:
        """Make the problem that the value at `loc` is not as `expected`."""
        path, value = self._find(loc)
        return Problem(path, value, expected)

    def path(self, loc: Loc) -> str:
        """Spell `loc` as the user did."""
        return self._find(loc)[0]

    def pattern(self, loc: Loc) -> str:
        """Spell as `path`, with ``[*]`` for each index."""
        return re.sub(r"\[\d+\]", "[*]", self.path(loc))

    def validate(self, model: type[M]) -> tuple[M | None, list[Problem]]:
        """Return the document as `model`, or None; and all that is wrong with its shape, keys included."""
        try:
            return model.model_validate(self.tidy), list(self.problems)
        except ValidationError as error:
            # A default that needs another field is not made when that one is wrong and has its own error.
            found = [
                self._translated(details)
                for details in error.errors(include_url=False)
                if details["type"] != "default_factory_not_called"
            ]
            return None, [*self.problems, *found]

    def _translated(self, error: Mapping[str, Any]) -> Problem:
        """Say a pydantic error in our words."""
        kind, loc, context = error["type"], error["loc"], error.get("ctx", {})
        if kind == "missing":
            shape = self.shape
            for step in loc[:-1]:
                shape = shape if isinstance(step, int) else shape.nested[step]
            return self.problem(loc, f"required: {shape.meaning[loc[-1]]}")
        if "key" in context:
            loc = (*loc, context["key"])
        return self.problem(loc, _EXPECTED[kind].format(**context) if kind in _EXPECTED else error["msg"])

    def _object(self, value: Any, shape: Shape) -> Any:
        """Tidy `value`, which is at the current trail; return it itself when there is nothing to change."""
        if not isinstance(value, dict):
            return value
        tidy = value
        if not (value.keys() <= shape.keys and _PLAIN.issuperset(map(type, value.values()))):
            tidy = self._rename(value, shape)
        for key, inner in shape.nested.items():
            if key not in tidy:
                continue
            old = tidy[key]
            self._trail.append(key)
            new = self._list(old, inner) if isinstance(old, list) else self._object(old, inner)
            self._trail.pop()
            if new is not old:
                if tidy is value:
                    tidy = dict(value)
                tidy[key] = new
        return tidy

    def _list(self, values: list[Any], shape: Shape) -> list[Any]:
        """Tidy each item."""
        tidy = values
        self._trail.append(0)
        for index, value in enumerate(values):
            self._trail[-1] = index
            new = self._object(value, shape)
            if new is not value:
                if tidy is values:
                    tidy = list(values)
                tidy[index] = new
        self._trail.pop()
        return tidy

    def _rename(self, value: dict[Any, Any], shape: Shape) -> dict[str, Any]:
        """Make a new object of what is known in `value`, in canonical spelling."""
        tidy: dict[str, Any] = {}
        inline: dict[str, Any] = {}
        first: dict[str, Any] = {}
        item = self._inline_shape(value, shape)
        for key, part in value.items():
            target, owner = (tidy, shape) if shape.name(key) else (inline, item)
            name = owner.name(key)
            if name is None:
                self._count_unknown(key, shape)
            elif name in first:
                expected = f"one key of the two: {first[name]!r} and {key!r} are the same"
                self.problems.append(self.problem((*self._trail, key), expected))
            else:
                first[name] = key
                if isinstance(part, bool) and name not in owner.flags:
                    target[name] = _NOT_A_FLAG
                elif part is not None:
                    target[name] = part
        if inline and shape.inline is not None:
            tidy[shape.inline] = [inline]
        return tidy

    @staticmethod
    def _inline_shape(value: dict[Any, Any], shape: Shape) -> Shape:
        """Say what may stand inline in `value`: nothing when it has the list itself."""
        has_list = any(part is not None and shape.name(key) == shape.inline for key, part in value.items())
        return _NO_SHAPE if shape.inline is None or has_list else shape.nested[shape.inline]

    def _count_unknown(self, key: Any, shape: Shape) -> None:
        pattern = (*(step for step in self._trail if isinstance(step, str)), str(key))
        if pattern not in self._unknown and len(self._unknown) >= _MAX_UNKNOWN:
            key = "*"
            pattern = (*pattern[:-1], key)
        count, loc, _ = self._unknown.get(pattern, (0, (*self._trail, key), shape))
        self._unknown[pattern] = (count + 1, loc, shape)

    def _find(self, loc: Loc) -> tuple[str, str]:
        """Path and value of `loc` in `raw`, the value as short JSON text, "" where there is none."""
        path, here, shape = "$", [self.raw], self.shape  # `here` is empty once the document ends.
        steps = iter(loc)
        for step in steps:
            value = here[0] if here else None
            if isinstance(step, int):
                here = [value[step]] if isinstance(value, list) else []
                path += f"[{step}]"
                continue
            mine = value if isinstance(value, dict) else {}
            key = step
            if mine.get(step) is None:
                key = next(
                    (k for k, part in mine.items() if part is not None and shape.name(k) == step), step
                )
            found = mine.get(key)
            if found is None and step == shape.inline:
                next(steps, None)  # The list is written inline: its only item is this very object.
            else:
                here = [] if found is None else [found]
                path += f".{key}" if re.fullmatch(r"[\w*-]+", str(key)) else f"[{key!r}]"
            shape = shape.nested.get(step, _NO_SHAPE)
        return path, _shortened(here[0]) if here else ""


def _shortened(value: Any) -> str:
    """JSON text of `value`, cut when it is long."""
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= _VALUE_LENGTH else text[: _VALUE_LENGTH - 1] + "…"


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """``; did you mean 'x'?`` for the one of `known` that is most like `name`, else an empty string."""
    spelled = {candidate.lower(): candidate for candidate in known}
    close = difflib.get_close_matches(name.lower(), spelled, n=1)
    return f"; did you mean {spelled[close[0]]!r}?" if close else ""

"""References to the catalogue in a system JSON, replaced by the figures they stand for.

::

    {"name": "H100", "catalog": "h100_sxm", "cloud": "aws"}                        an accelerator
    {"name": "llama", "acc": "H100", "profile": "catalog:llama-3.1-70b/h100_sxm"}   a profile

What the document gives itself wins over the catalogue. docs/catalog.md has the keys.
"""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING, Any

from models import catalog
from models.fit import PARAMETERS, Form
from solver import schema
from solver.errors import InputError, Problem
from solver.units import in_cents
from solver.wire_parse import collector_paused, decode, did_you_mean

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from models.catalog import Gpu, Price, Profile
    from models.fit import Fit

PREFIX = "catalog:"
LEAST_OVERHEAD_MS = 0.1

# Keys of an accelerator and of a profile that only the catalogue reads.
ACCELERATOR_KEYS = ("catalog", "cloud", "region", "spot")
PROFILE_KEY = "profile"

# Wire name and attribute of the parameters of law 3 in a catalogue's row.
LAW_3 = {
    "alpha": "alpha_ms",
    "beta": "beta_ms",
    "gamma": "gamma_ms",
    "betaPrefill": "beta_prefill_ms",
    "epsilon": "epsilon_ms",
    "expertFraction": "expert_fraction",
    "prefillFloor": "prefill_floor_ms",
}
LAW_KEYS = ("alpha", "beta", "decodeparms", "prefillparms", "perfparms", "rateperreplica")


def expand_catalog(document: dict[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """Replace references to the catalogue by figures.

    Parameters
    ----------
    document : dict
        System JSON, with the outer ``system`` or without, keys in any case. It is not changed.

    Returns
    -------
    dict
        The document itself where it has no reference.
    list of str
        Warnings: which rows were chosen where several match, prices that are missing, uses outside the
        measured range.

    Raises
    ------
    InputError
        A reference that the catalogue does not have, or that contradicts the rest of its entry.
    """
    outer = _find(document, "system")
    system = document[outer] if outer is not None else document
    if not isinstance(system, dict):
        return document, []
    prefix = f"$.{outer}" if outer is not None else "$"
    accelerator_path, accelerators = _items(system, "acceleratorData", "accelerators")
    model_path, models = _items(system, "modelData", "models")
    if not (_have(accelerators, "catalog") or _have(models, PROFILE_KEY)):
        return document, []

    optimizer = _dict(_get(_dict(_get(system, "optimizerData")), "optimizer"))
    expansion = _Expansion(queue_model=_get(optimizer, "queueModel"))
    new_accelerators = [
        expansion.accelerator(item, f"{prefix}.{'.'.join(accelerator_path)}[{index}]")
        if _is_reference(item, "catalog")
        else item
        for index, item in enumerate(accelerators)
    ]
    by_name = {_get(item, "name"): item for item in accelerators if isinstance(item, dict)}
    new_models = [
        expansion.profile(item, f"{prefix}.{'.'.join(model_path)}[{index}]", by_name)
        if _is_reference(item, PROFILE_KEY)
        else item
        for index, item in enumerate(models)
    ]
    if expansion.problems:
        raise InputError(expansion.problems)
    new_system = dict(system)
    for path, items in ((accelerator_path, new_accelerators), (model_path, new_models)):
        if items:
            new_system[path[0]] = {**system[path[0]], path[1]: items}
    _, servers = _items(system, "serverData", "servers")
    warnings = list(dict.fromkeys(expansion.warnings + expansion.outside(servers)))
    return ({**document, outer: new_system} if outer is not None else new_system), warnings


def read_system(body: bytes | str | dict[str, Any], *, strict: bool = False) -> schema.Parsed:
    """Read a system JSON that may refer to the catalogue: `expand_catalog`, then `schema.parse_system`.

    Raises
    ------
    InputError
        As those two.
    """
    with collector_paused():
        raw = body if isinstance(body, dict) else decode(body)
    if not isinstance(raw, dict):
        return schema.parse_system(body, strict=strict)
    expanded, warnings = expand_catalog(raw)
    parsed = schema.parse_system(expanded, strict=strict)
    return schema.Parsed(parsed.system, parsed.warnings + warnings)


def law_3_parameters(row: Profile) -> dict[str, float]:
    """Return `perfParms` of a catalogue's row, ms (per token); what the row's form lacks is left out."""
    found = {wire: float(getattr(row, attribute)) for wire, attribute in LAW_3.items()}
    return {wire: value for wire, value in found.items() if not math.isnan(value)}


def profile_entry(fitted: Fit, *, model: str, accelerator: str, units: int = 1) -> dict[str, Any]:
    """Return the entry of `modelData` that a fit becomes.

    Parameters
    ----------
    fitted : Fit
    model, accelerator : str
        Names.
    units : int
        Units of the accelerator that a replica takes.
    """
    values = {name: float(f"{value:.6g}") for name, value in fitted.parameters.items()}
    entry: dict[str, Any] = {
        "name": model,
        "acc": accelerator,
        "accCount": units,
        "maxBatchSize": int(fitted.concurrency.high),
    }
    if fitted.form is Form.DECODE_LINEAR:
        return entry | values
    if fitted.form is Form.PREFILL_DECODE:
        names = PARAMETERS[fitted.form]
        return entry | {
            "decodeParms": {name: values[name] for name in names[:2]},
            "prefillParms": {name: values[name] for name in names[2:]},
        }
    # A share of a millisecond is no overhead worth a key.
    overhead = {"overhead": round(fitted.overhead_ms, 1)} if fitted.overhead_ms >= LEAST_OVERHEAD_MS else {}
    return entry | {"perfParms": values, "queueModel": "moments"} | overhead


class _Expansion:
    """What one document refers to, with the problems and warnings on the way."""

    def __init__(self, queue_model: Any) -> None:
        self.queue_model = queue_model
        self.gpus = {row.gpu: row for row in catalog.gpus()}
        self.prices = catalog.prices()
        self.profiles = catalog.profiles()
        self.problems: list[Problem] = []
        self.warnings: list[str] = []
        self.used: list[tuple[str, str, Profile]] = []

    def accelerator(self, item: dict[str, Any], path: str) -> dict[str, Any]:
        """Fill in memory, bandwidth, power and cost of one unit."""
        name, cloud = str(_get(item, "catalog")), _get(item, "cloud")
        gpu = self.gpus.get(name.lower())
        if gpu is None:
            expected = f"a GPU of the catalogue{did_you_mean(name, self.gpus)}"
            self._problem(f"{path}.catalog", name, expected)
            return item
        cards = _count(_get(item, "multiplicity"))
        found = {
            "memSize": round(gpu.mem_gb * cards, 6),
            "memBW": gpu.mem_bw_gb_per_s * cards,
            "power": {"full": gpu.power_w},
        }
        if cloud is not None and _find(item, "cost") is None:
            price = self._price(item, path, gpu, str(cloud))
            if price is not None:
                spot = bool(_get(item, "spot"))
                usd = price.spot_usd_per_gpu_h if spot else price.usd_per_gpu_h
                found["cost"] = round(in_cents(usd * cards), 4)
                where = f"{price.cloud}, {price.region}" if price.region else price.cloud
                when = f"as of {price.as_of}" if price.as_of[0].isdigit() else price.as_of
                self.warnings.append(
                    f"catalogue: {'spot ' if spot else ''}price of {gpu.gpu} at {where} "
                    f"({price.instance_type}) is {usd:g} USD/h a card, {when}"
                )
        elif cloud is None and _find(item, "cost") is None:
            self.warnings.append(f"{path}: no cost, and no cloud whose price to take: it counts as free")
        own = {key: value for key, value in item.items() if key.lower() not in ACCELERATOR_KEYS}
        return {key: value for key, value in found.items() if _find(item, key) is None} | own

    def _price(self, item: dict[str, Any], path: str, gpu: Gpu, cloud: str) -> Price | None:
        region, spot = _get(item, "region"), bool(_get(item, "spot"))
        price = catalog.cheapest(self.prices, gpu=gpu.gpu, cloud=cloud, region=region, spot=spot)
        if price is None:
            clouds = sorted(
                {
                    row.cloud
                    for row in self.prices
                    if catalog.cheapest([row], gpu=gpu.gpu, cloud=row.cloud, spot=spot)
                }
            )
            kind = "spot price" if spot else "price"
            expected = (
                f"a cloud and region with a {kind} of {gpu.gpu} ({', '.join(clouds) or 'none has one'})"
            )
            self._problem(f"{path}.cloud", cloud if region is None else f"{cloud}, {region}", expected)
        return price

    def profile(
        self, item: dict[str, Any], path: str, accelerators: Mapping[Any, dict[str, Any]]
    ) -> dict[str, Any]:
        """Fill in the law, the units per replica, the measured batch limit and the memory of the model."""
        reference = str(_get(item, PROFILE_KEY))
        where = f"{path}.{PROFILE_KEY}"
        own_law = [key for key in item if key.lower() in LAW_KEYS]
        if own_law:
            self._problem(where, reference, f"either a profile or {own_law[0]}, not both")
            return item
        if not reference.startswith(PREFIX):
            self._problem(where, reference, f"{PREFIX} and the id of a profile of the catalogue")
            return item
        accelerator = accelerators.get(_get(item, "acc"), {})
        cards, units = _count(_get(accelerator, "multiplicity")), _get(item, "accCount")
        gpu = _get(accelerator, "catalog")
        gpu = gpu if str(gpu).lower() in self.gpus else None
        named = catalog.matching(self.profiles, reference.removeprefix(PREFIX))
        fitting = [
            row
            for row in named
            if (gpu is None or row.gpu == str(gpu).lower())
            and row.cards % cards == 0
            and (units is None or row.cards == _count(units) * cards)
        ]
        if not fitting:
            if named:
                expected = f"a profile for {gpu or 'any GPU'} on " + (
                    f"{_count(units) * cards} cards" if units is not None else f"a multiple of {cards} cards"
                )
            else:
                ids = [PREFIX + row.id for row in self.profiles]
                models = [f"{PREFIX}{row.model}" for row in self.profiles]
                expected = f"a profile of the catalogue{did_you_mean(reference, [*ids, *models])}"
            self._problem(where, reference, expected)
            return item
        row = fitting[0]
        if len(fitting) > 1:
            self.warnings.append(
                f"{where}: {len(fitting)} profiles are meant by {reference}; {PREFIX}{row.id} was taken, "
                f"with {row.held_out_error:.1%} the least error at unseen shapes"
            )
        if row.warnings:
            self.warnings.append(f"{PREFIX}{row.id}: {row.warnings}")
        limit = _number(_get(item, "maxBatchSize"))
        if limit > row.batch_high:
            self.warnings.append(
                f"{path}.maxBatchSize: {limit:g} is outside the measured range {row.batch_low:g} to "
                f"{row.batch_high:g} of {PREFIX}{row.id}"
            )
        self.used.append((str(_get(item, "name")), str(_get(item, "acc")), row))
        found: dict[str, Any] = {
            "accCount": row.cards // cards,
            "maxBatchSize": int(row.batch_high),
            "weightSize": row.weights_gb,
            "kvBytesPerToken": row.kv_bytes_per_token,
            "perfParms": law_3_parameters(row),
        }
        # What the options ask for wins over the default.
        if self.queue_model is None:
            found["queueModel"] = "moments"
        own = {key: value for key, value in item.items() if key.lower() != PROFILE_KEY}
        return {key: value for key, value in found.items() if _find(item, key) is None} | own

    def outside(self, servers: Iterable[Any]) -> list[str]:
        """Say which servers leave the measured range of a profile that they may use."""
        warnings = []
        for server in servers:
            if not isinstance(server, dict):
                continue
            load = _get(_dict(_get(server, "currentAlloc")), "load")
            for model, accelerator, row in self.used:
                if _get(server, "model") != model:
                    continue
                uses = (
                    ("batch", _number(_get(server, "maxBatchSize")), row.batch_low, row.batch_high),
                    ("input tokens", _number(_get(_dict(load), "avgInTokens")), row.in_low, row.in_high),
                    ("output tokens", _number(_get(_dict(load), "avgOutTokens")), row.out_low, row.out_high),
                )
                warnings += [
                    f"server {_get(server, 'name')} on {accelerator}: {what} {value:g} is outside the "
                    f"measured range {low:g} to {high:g} of {PREFIX}{row.id}"
                    for what, value, low, high in uses
                    if value > 0 and not low <= value <= high
                ]
        return warnings

    def _problem(self, path: str, value: str, expected: str) -> None:
        self.problems.append(Problem(path, json.dumps(value), expected))


def _find(item: Mapping[str, Any], name: str) -> str | None:
    """Key of an object in the case it is written in, None where it is absent or null."""
    wanted, length = name.lower(), len(name)
    for key, value in item.items():
        if isinstance(key, str) and len(key) == length and key.lower() == wanted and value is not None:
            return key
    return None


def _get(item: Mapping[str, Any], name: str) -> Any:
    key = _find(item, name)
    return None if key is None else item[key]


def _have(items: list[Any], name: str) -> bool:
    """Whether one of these may be a reference; mostly all of them have the same keys."""
    return any(
        _find(dict.fromkeys(keys, 0), name) for keys in {tuple(i) for i in items if isinstance(i, dict)}
    )


def _is_reference(item: Any, name: str) -> bool:
    return isinstance(item, dict) and _find(item, name) is not None


def _items(system: Mapping[str, Any], outer: str, inner: str) -> tuple[tuple[str, str], list[Any]]:
    """Keys and content of a list two levels down; empty where there is none."""
    outer = _find(system, outer) or outer
    part = _dict(system.get(outer))
    inner = _find(part, inner) or inner
    items = part.get(inner)
    return (outer, inner), items if isinstance(items, list) else []


def _dict(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _number(value: Any) -> float:
    """A number, or text that is one; 0 for anything else, which the schema will refuse."""
    try:
        number = float(value)
    except (TypeError, ValueError):
        return 0.0
    return number if math.isfinite(number) else 0.0


def _count(value: Any) -> int:
    """A count; 1 where it is absent or 0, as in the schema."""
    return max(int(_number(value)), 1)

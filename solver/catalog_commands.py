"""What ``fleetopt fit``, ``fleetopt catalog`` and ``fleetopt system new`` do.

Each takes the options that `solver.catalog_cli` defines, prints, and returns an exit code; it raises
`InputError` for what the user can put right.
"""

from __future__ import annotations

import json
import math
import sys
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from rich.box import SIMPLE_HEAD
from rich.table import Table

from models import catalog
from models.fit import PARAMETERS, expectation, fit, outside
from models.measurements import MeasurementError, read
from solver.catalog import PREFIX, expand_catalog, profile_entry
from solver.errors import InputError, Problem
from solver.table import console_for
from solver.wire_parse import did_you_mean

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterable, Sequence
    from pathlib import Path

    from models.catalog import Gpu, Profile
    from models.fit import Expectation, Fit

OK = 0

BYTES_PER_S_PER_GB_PER_S = 1e9
FLOP_PER_S_PER_TFLOPS = 1e12

# --- fit ---


def run_fit(args: argparse.Namespace) -> int:
    """Fit a law to files and show it."""
    experts, share = _experts(args.experts)
    try:
        measured = read(args.files)
        fitted = fit(measured, experts=experts, expert_fraction=share, expected=_data_sheet(args))
    except MeasurementError as error:
        names = _names(args.files)
        raise InputError([Problem(names, "", str(error).removeprefix(f"{names}: "))]) from error
    except OSError as error:
        path = error.filename or _names(args.files)
        raise InputError([Problem(str(path), "", f"a file that can be read ({error.strerror})")]) from error
    except UnicodeDecodeError as error:
        raise InputError([Problem(_names(args.files), "", "text in UTF-8")]) from error
    entry = profile_entry(fitted, model=args.model, accelerator=args.acc, units=args.acc_count)
    warnings = [*fitted.warnings, *_outside(args, fitted)]
    if args.output == "json":
        print(json.dumps({"profile": entry, "fit": _report(fitted, warnings)}, indent=2))
    else:
        _show_fit(fitted, warnings, entry)
    if args.write:
        _write(args.write, json.dumps(entry, indent=2) + "\n")
    if args.plot:
        _plot(args, measured, fitted)
    return OK


def _experts(text: str | None) -> tuple[bool, float | None]:
    if text is None:
        return False, None
    if text == "unknown":
        return True, None
    used, _, all_of_them = text.partition("/")
    try:
        share = float(used) / float(all_of_them)
    except (ValueError, ZeroDivisionError):
        share = math.nan
    if not 0 < share <= 1:
        raise InputError([Problem("--experts", json.dumps(text), "two numbers such as 8/256, or unknown")])
    return True, share


def _data_sheet(args: argparse.Namespace) -> Expectation | None:
    given = [args.gpu, args.kv_bytes, args.active_parameters]
    if not any(given):
        return None
    if not all(given):
        raise InputError([Problem("--gpu", "", "--gpu, --kv-bytes and --active-parameters come together")])
    gpu = _gpu(args.gpu)
    # A card without 8-bit arithmetic computes such weights at 16 bits.
    tflops = gpu.fp8_tflops if args.fp8 and not math.isnan(gpu.fp8_tflops) else gpu.bf16_tflops
    return expectation(
        kv_bytes_per_token=args.kv_bytes,
        active_parameters=args.active_parameters,
        bytes_per_s=gpu.mem_bw_gb_per_s * BYTES_PER_S_PER_GB_PER_S,
        flop_per_s=tflops * FLOP_PER_S_PER_TFLOPS,
        cards=args.cards,
    )


def _gpu(name: str) -> Gpu:
    by_name = {row.gpu: row for row in catalog.gpus()}
    if name.lower() not in by_name:
        expected = f"a GPU of the catalogue ({', '.join(by_name)}){did_you_mean(name, by_name)}"
        raise InputError([Problem("--gpu", json.dumps(name), expected)])
    return by_name[name.lower()]


def _outside(args: argparse.Namespace, fitted: Fit) -> list[str]:
    """Say where the use leaves the measured range; what is not given is inside."""
    return outside(
        fitted,
        batch=args.use_batch or fitted.concurrency.high,
        in_tokens=args.use_in_tokens or fitted.in_tokens.high,
        out_tokens=args.use_out_tokens or fitted.out_tokens.high,
    )


def _report(fitted: Fit, warnings: Sequence[str]) -> dict[str, Any]:
    report = asdict(fitted) | {"warnings": list(warnings)}
    return {key: _null(value) for key, value in report.items()}


def _null(value: Any) -> Any:
    """NaN and infinity as null, at any depth: JSON has neither."""
    if isinstance(value, dict):
        return {key: _null(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_null(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _show_fit(fitted: Fit, warnings: Sequence[str], entry: dict[str, Any]) -> None:
    print(
        f"{fitted.form}, {fitted.points} points: mean error {fitted.mean_error:.1%}, worst "
        f"{fitted.worst_error:.1%}, at unseen shapes {fitted.held_out_error:.1%}"
        + ("" if math.isnan(fitted.ttft_error) else f"; TTFT {fitted.ttft_error:.0%}")
    )
    rows = [
        (name, f"{value:.4g}", _standard_error(fitted, name)) for name, value in fitted.parameters.items()
    ]
    if not math.isnan(fitted.overhead_ms):
        error = "unknown" if math.isinf(fitted.overhead_error_ms) else f"{fitted.overhead_error_ms:.2g}"
        rows.append(("overhead", f"{fitted.overhead_ms:.4g}", error))
    _table(("parameter", "value (ms)", "standard error"), rows)
    others = [
        (str(c.form), f"{c.mean_error:.1%}", f"{c.held_out_error:.1%}")
        for c in sorted(fitted.candidates, key=lambda c: c.held_out_error)
    ]
    _table(("law", "mean error", "at unseen shapes"), others)
    for warning in warnings:
        print(f"warning: {warning}")
    print(json.dumps(entry))


def _standard_error(fitted: Fit, name: str) -> str:
    if name in fitted.standard_errors:
        error = fitted.standard_errors[name]
        return "unknown" if math.isnan(error) else f"{error:.2g}"
    return "at its bound" if name in PARAMETERS[fitted.form] else "a share, chosen"


def _plot(args: argparse.Namespace, measured: Any, fitted: Fit) -> None:
    from models.fit_plot import plot

    try:
        plot(measured, fitted, args.plot)
    except ImportError as error:
        expected = "Matplotlib to draw with: pip install 'fleetopt[fit]'"
        raise InputError([Problem("--plot", "", expected)]) from error
    except (ValueError, OSError) as error:
        raise InputError([Problem("--plot", json.dumps(str(args.plot)), f"a picture: {error}")]) from error


# --- catalog ---


def run_catalog(args: argparse.Namespace) -> int:
    """List a table of the catalogue."""
    rows: Iterable[Any] = {
        "profiles": catalog.profiles,
        "gpus": catalog.gpus,
        "prices": catalog.prices,
    }[args.what]()
    contains = {"model": args.model, "gpu": args.gpu}
    equals = {
        "engine": args.engine,
        "precision": args.precision,
        "cards": args.cards,
        "cloud": args.cloud,
        "region": args.region,
    }
    found = [
        asdict(row)
        for row in rows
        if all(
            part.lower() in getattr(row, key, "")
            for key, part in contains.items()
            if part and hasattr(row, key)
        )
        and all(
            getattr(row, key) == value
            for key, value in equals.items()
            if value is not None and hasattr(row, key)
        )
    ]
    if args.output == "json":
        print(json.dumps(_null(found), indent=2))
    elif found:
        _table(*_columns(args.what, found))
    else:
        print(f"none of the {args.what} matches")
    return OK


def _columns(what: str, rows: list[dict[str, Any]]) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """Head and cells of a listing; JSON has every column."""
    if what == "profiles":
        return ("profile", "error", "unseen", "batch", "input", "output", "points", "measured", "source"), [
            (
                row["id"],
                f"{row['mean_error']:.1%}",
                f"{row['held_out_error']:.1%}",
                *(f"{row[f'{key}_low']:g}-{row[f'{key}_high']:g}" for key in ("batch", "in", "out")),
                str(row["points"]),
                row["measured"],
                f"{row['source']} ({row['licence']})",
            )
            for row in rows
        ]
    return tuple(rows[0]), [tuple(_cell(value) for value in row.values()) for row in rows]


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return "" if math.isnan(value) else f"{value:g}"
    return str(value)


# --- system new ---


def run_system_new(args: argparse.Namespace) -> int:
    """Write a system of references to the catalogue."""
    rows = _chosen(args)
    document = {
        "system": {
            "acceleratorData": {"accelerators": _accelerators(args, rows)},
            "modelData": {
                "models": [
                    {"name": args.model, "acc": _unit(row), "profile": PREFIX + row.id} for row in rows
                ]
            },
            "serviceClassData": {
                "serviceClasses": [
                    {
                        "name": "default",
                        "priority": 1,
                        "modelTargets": [{"model": args.model, "slo-ttft": args.ttft, "slo-itl": args.itl}],
                    }
                ]
            },
            "serverData": {
                "servers": [
                    {
                        "name": args.model,
                        "class": "default",
                        "model": args.model,
                        "currentAlloc": {
                            "load": {
                                "arrivalRate": args.rate,
                                "avgInTokens": args.in_tokens,
                                "avgOutTokens": args.out_tokens,
                            }
                        },
                    }
                ]
            },
            "optimizerData": {"optimizer": {"unlimited": args.count is None}},
        }
    }
    if args.count is not None:
        types = sorted({row.gpu for row in rows})
        document["system"]["capacityData"] = {
            "count": [{"type": name, "count": args.count} for name in types]
        }
    expanded, warnings = expand_catalog(document)
    for warning in warnings:
        print(f"warning: {warning}", file=sys.stderr)
    text = json.dumps(expanded if args.expand else document, indent=2) + "\n"
    if args.write:
        _write(args.write, text)
    else:
        print(text, end="")
    return OK


def _chosen(args: argparse.Namespace) -> list[Profile]:
    """Return the best profile of the model for each GPU type and number of cards."""
    every = catalog.profiles()
    named = [row for row in every if row.model == args.model.lower()]
    if not named:
        models = sorted({row.model for row in every})
        expected = f"a model of the catalogue ({', '.join(models)}){did_you_mean(args.model, models)}"
        raise InputError([Problem("--model", json.dumps(args.model), expected)])
    wanted = None if args.gpu is None else {_gpu(name).gpu for name in args.gpu}
    meant = [
        row
        for row in named
        if (wanted is None or row.gpu in wanted)
        and args.precision in (None, row.precision)
        and args.engine in (None, row.engine)
    ]
    best: dict[tuple[str, int], Profile] = {}
    for row in meant:
        if wanted is None and not _priced(args, row.gpu):
            continue
        key = (row.gpu, row.cards)
        if key not in best or row.held_out_error < best[key].held_out_error:
            best[key] = row
    if meant and not best:
        kind = "spot price" if args.spot else "price"
        where = args.cloud if args.region is None else f"{args.cloud}, {args.region}"
        cards = ", ".join(sorted({row.gpu for row in meant}))
        raise InputError([Problem("--cloud", json.dumps(where), f"a cloud with a {kind} of one of {cards}")])
    if not best:
        has = sorted({f"{row.gpu} {row.engine} {row.precision}" for row in named})
        expected = f"a GPU, engine and precision that {args.model} was measured on ({', '.join(has)})"
        raise InputError([Problem("--gpu", json.dumps(args.gpu), expected)])
    return [best[key] for key in sorted(best)]


def _priced(args: argparse.Namespace, gpu: str) -> bool:
    price = catalog.cheapest(catalog.prices(), gpu=gpu, cloud=args.cloud, region=args.region, spot=args.spot)
    return price is not None


def _accelerators(args: argparse.Namespace, rows: Iterable[Profile]) -> list[dict[str, Any]]:
    """One accelerator for each number of cards of a type: a unit is what a replica runs on."""
    found = {}
    for row in rows:
        unit: dict[str, Any] = {
            "name": _unit(row),
            "type": row.gpu,
            "multiplicity": row.cards,
            "catalog": row.gpu,
            "cloud": args.cloud,
        }
        if args.region is not None:
            unit["region"] = args.region
        if args.spot:
            unit["spot"] = True
        found[unit["name"]] = unit
    return list(found.values())


def _unit(row: Profile) -> str:
    return f"{row.gpu}-x{row.cards}"


# --- shared ---


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    table = Table(*head, box=SIMPLE_HEAD, pad_edge=False)
    for row in rows:
        table.add_row(*row)
    console_for(sys.stdout).print(table)


def _write(path: Path, text: str) -> None:
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise InputError(
            [Problem(str(path), "", f"a file that can be written ({error.strerror})")]
        ) from error


def _names(paths: Iterable[Path]) -> str:
    return ", ".join(str(path) for path in paths)

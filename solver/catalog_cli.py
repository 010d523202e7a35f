"""The commands ``fleetopt fit``, ``fleetopt catalog`` and ``fleetopt system new``: their options.

`add_parsers` adds them to the command line. What they do is in `solver.catalog_commands`, which is imported
when one of them runs: SciPy's optimisation takes longer to import than most commands take to run.
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

_Commands = Any  # argparse gives the type of its subcommands no public name


def add_parsers(commands: _Commands) -> None:
    """Add the commands of this module to the subparsers of a command line."""
    _add_fit(commands)
    _add_catalog(commands)
    _add_system(commands)


def _add(
    commands: _Commands, name: str, run: Callable[[argparse.Namespace], int], text: str
) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = commands.add_parser(name, help=text, description=text)
    parser.set_defaults(command=run)
    return parser


def _run_fit(args: argparse.Namespace) -> int:
    from solver.catalog_commands import run_fit

    return run_fit(args)


def _run_catalog(args: argparse.Namespace) -> int:
    from solver.catalog_commands import run_catalog

    return run_catalog(args)


def _run_system_new(args: argparse.Namespace) -> int:
    from solver.catalog_commands import run_system_new

    return run_system_new(args)


def _add_fit(commands: _Commands) -> None:
    parser = _add(commands, "fit", _run_fit, "Fit a performance model to measurements.")
    parser.add_argument(
        "files", nargs="+", type=Path, metavar="FILE", help="CSV, guidellm report or vLLM bench result"
    )
    parser.add_argument("--model", default="model", help="name of the model in the profile")
    parser.add_argument("--acc", default="accelerator", help="name of the accelerator in the profile")
    parser.add_argument("--acc-count", type=_count, default=1, metavar="N", help="units of it in a replica")
    parser.add_argument(
        "--experts",
        metavar="K/E",
        help="experts that a token uses of those of a layer, such as 8/256; or unknown",
    )
    parser.add_argument("--use-batch", type=_positive, metavar="N", help="largest batch of the use")
    parser.add_argument("--use-in-tokens", type=_positive, metavar="N", help="input tokens of the use")
    parser.add_argument("--use-out-tokens", type=_positive, metavar="N", help="output tokens of the use")
    data_sheet = parser.add_argument_group(
        "data sheet", "together they decide what the measurements leave open (docs/fit.md)"
    )
    data_sheet.add_argument("--gpu", help="GPU of the catalogue, such as h100_sxm")
    data_sheet.add_argument("--cards", type=_count, default=1, metavar="N", help="GPUs of the replica")
    data_sheet.add_argument("--kv-bytes", type=_positive, metavar="B", help="KV cache of a token, bytes")
    data_sheet.add_argument("--active-parameters", type=_positive, metavar="P", help="that a token uses")
    data_sheet.add_argument("--fp8", action="store_true", help="8-bit or 4-bit arithmetic (default: 16-bit)")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="draw measured and predicted: .png or .svg")
    parser.add_argument("--write", type=Path, metavar="FILE", help="write the entry of modelData")
    parser.add_argument("--output", choices=("table", "json"), default="table", help="default: table")


def _add_catalog(commands: _Commands) -> None:
    text = "List the measured profiles, GPUs and prices that ship with fleetopt."
    parser = _add(commands, "catalog", _run_catalog, text)
    parser.add_argument("what", nargs="?", choices=("profiles", "gpus", "prices"), default="profiles")
    parser.add_argument("--model", help="only models whose name contains this")
    parser.add_argument("--gpu", help="only GPUs whose name contains this")
    parser.add_argument("--engine", help="only this engine")
    parser.add_argument("--precision", help="only this precision")
    parser.add_argument("--cards", type=_count, help="only replicas of so many cards")
    parser.add_argument("--cloud", help="only this cloud")
    parser.add_argument("--region", help="only this region")
    parser.add_argument("--output", choices=("table", "json"), default="table", help="default: table")


def _add_system(commands: _Commands) -> None:
    text = "Write system files."
    actions = commands.add_parser("system", help=text, description=text).add_subparsers(
        title="actions", metavar="ACTION", required=True
    )
    parser = _add(actions, "new", _run_system_new, "Write a system for one model from the catalogue.")
    parser.add_argument("--model", required=True, help="model of the catalogue, such as llama-3.1-70b")
    parser.add_argument("--gpu", action="append", help="GPU of the catalogue; may be repeated (default: all)")
    parser.add_argument("--precision", help="only profiles of this precision")
    parser.add_argument("--engine", help="only profiles of this engine")
    parser.add_argument("--rate", type=_positive, required=True, metavar="R", help="requests/min")
    parser.add_argument("--in-tokens", type=_positive, default=1024.0, metavar="N", help="default: 1024")
    parser.add_argument("--out-tokens", type=_positive, default=1024.0, metavar="N", help="default: 1024")
    parser.add_argument("--ttft", type=_positive, required=True, metavar="MS", help="target of the mean, ms")
    parser.add_argument("--itl", type=_positive, required=True, metavar="MS", help="target of the mean, ms")
    parser.add_argument("--cloud", default="aws", help="whose prices to take (default: aws)")
    parser.add_argument("--region", help="default: the cheapest")
    parser.add_argument("--spot", action="store_true", help="prices of interruptible instances")
    parser.add_argument(
        "--count", type=_count, metavar="N", help="GPUs there are of each type (default: no limit)"
    )
    parser.add_argument("--expand", action="store_true", help="write figures in place of references")
    parser.add_argument("--write", type=Path, metavar="FILE", help="default: standard output")


def _positive(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"must be a number above 0: {text}")
    return value


def _count(text: str) -> int:
    try:
        value = int(text)
    except ValueError:
        value = 0
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number of at least 1: {text}")
    return value

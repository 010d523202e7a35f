"""Measured latencies of one model on one accelerator: what a fit starts from, and the files it is read from.

Times are in milliseconds here, as in every file format read and in the profile that a fit writes: nothing on
that way changes a unit. The exception is vLLM's result, whose duration is in seconds.

::

    .csv | guidellm .json | vLLM .json -> read -> Measurements -> check -> warnings, or MeasurementError
"""

from __future__ import annotations

import csv
import json
from dataclasses import dataclass, fields
from math import inf
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping
    from pathlib import Path

    from models.laws import BoolArray, FloatArray, IntArray

# Other names of the columns, as the common benchmark tables spell them.
COLUMN_NAMES = {
    "concurrency": ("concurrency", "batch", "batch_size", "max_concurrency"),
    "in_tokens": ("input_tokens", "in_tokens", "isl", "prompt_tokens"),
    "out_tokens": ("output_tokens", "out_tokens", "osl"),
    "itl_ms": ("itl_ms", "tpot_ms"),
    "ttft_ms": ("ttft_ms",),
    "e2e_ms": ("e2e_ms",),
    "together": ("together",),
}
REQUIRED_COLUMNS = ("concurrency", "in_tokens", "out_tokens", "itl_ms")

# Medians outside these are no latencies of a served model in milliseconds: below, seconds; above,
# microseconds.
LEAST_ITL_MS = 0.3
GREATEST_ITL_MS = 5000.0

# A request that spends more than this share of its time before the first token has queued outside the batch,
# so that the batch was smaller than the concurrency.
QUEUED_SHARE = 0.5

# Relative disagreement of end-to-end time with TTFT + (b - 1) ITL that is worth a warning.
E2E_TOLERANCE = 0.1

# An ITL this close to end-to-end time / b in most points, and not to what it has to be, was computed so.
SAME = 0.005

# The first token of a request that is alone takes an iteration with a prompt in it. A TTFT below this share
# of the ITL says that one of the two is wrong.
LONE_TTFT_ITL = 0.9

# An ITL that is lower by more than this at a larger batch of the same shape is worth a warning.
FALLING_ITL = 0.1

MS_PER_S = 1000.0


class MeasurementError(ValueError):
    """A file is no measurement, or its numbers cannot be what they are called."""


@dataclass(frozen=True)
class Measurements:
    """Mean latencies at a number of operating points; every array has shape (n,).

    Attributes
    ----------
    concurrency : float
        Requests in service at once, >= 1.
    in_tokens, out_tokens : float
        Means of a request, >= 0 and >= 1.
    itl_ms : float
        Mean time between output tokens, > 0.
    ttft_ms, e2e_ms : float
        Mean time to the first token and of the whole request, > 0; NaN where not measured.
    together : bool
        True where a batch started at once and ran to its end with no other (static batching); False where
        each finished request is replaced by a new one (continuous batching at fixed concurrency).
    """

    concurrency: FloatArray
    in_tokens: FloatArray
    out_tokens: FloatArray
    itl_ms: FloatArray
    ttft_ms: FloatArray
    e2e_ms: FloatArray
    together: BoolArray

    def __len__(self) -> int:
        return len(self.concurrency)

    def take(self, index: BoolArray | IntArray) -> Measurements:
        """Return the points at a mask or index."""
        return Measurements(**{field.name: getattr(self, field.name)[index] for field in fields(self)})

    @property
    def shape_index(self) -> IntArray:
        """Number of each point's request shape (input, output tokens), counted from 0."""
        pairs = np.stack([self.in_tokens, self.out_tokens], axis=1)
        return np.unique(pairs, axis=0, return_inverse=True)[1].reshape(len(self)).astype(np.int64)


def from_rows(rows: Iterable[Mapping[str, float]]) -> Measurements:
    """Build measurements from mappings with the attribute names of `Measurements` as keys.

    Parameters
    ----------
    rows : iterable of mapping
        `ttft_ms`, `e2e_ms` and `together` may be left out.
    """
    table = list(rows)

    def column(name: str, default: float) -> FloatArray:
        return np.array([float(row.get(name, default)) for row in table], dtype=np.float64)

    return Measurements(
        **{name: column(name, np.nan) for name in (*REQUIRED_COLUMNS, "ttft_ms", "e2e_ms")},
        together=column("together", 0.0) != 0,
    )


def read(paths: Iterable[Path]) -> Measurements:
    """Read files of any format known, as one set of points.

    Parameters
    ----------
    paths : iterable of Path
        ``.csv`` with the columns of docs/fit.md; anything else is JSON, or JSON lines, of guidellm
        (https://github.com/vllm-project/guidellm, ``benchmarks.json``) or of vLLM's ``bench serve``
        (https://github.com/vllm-project/vllm, ``--save-result``).

    Raises
    ------
    MeasurementError
        A file has no known format, or a column or number is missing.
    OSError
        A file cannot be read.
    """
    rows: list[dict[str, float]] = []
    for path in paths:
        text = path.read_text(encoding="utf-8-sig")
        try:
            found = list(_csv_rows(text) if path.suffix.lower() == ".csv" else _json_rows(text))
            if not found:
                raise MeasurementError("no measurement in it")
        except MeasurementError as error:
            raise MeasurementError(f"{path}: {error}") from error
        rows += found
    return from_rows(rows)


def check(measured: Measurements) -> tuple[Measurements, list[str]]:
    """Refuse numbers that cannot be what they are called, and drop points that queued outside the batch.

    Returns
    -------
    Measurements
        The points to fit.
    list of str
        Warnings.

    Raises
    ------
    MeasurementError
        Nothing to fit; a number is negative, zero or not finite; one batch size only; seconds or microseconds
        for milliseconds; an inter-token latency that is counted twice, or has the first token in it.
    """
    _check_numbers(measured)
    _check_units(measured)
    warnings = _check_end_to_end(measured) + _check_alone(measured)
    total_ms = measured.ttft_ms + (measured.out_tokens - 1) * measured.itl_ms
    others = ~measured.together & (measured.concurrency > 1)  # a request that is alone has none to queue for
    queued = others & (measured.ttft_ms > QUEUED_SHARE * total_ms)
    if queued.any():
        warnings.append(
            f"{queued.sum()} of {len(measured)} points left out: more than {QUEUED_SHARE:.0%} of the time "
            "was before the first token, so fewer requests were in the batch than the concurrency says"
        )
        measured = measured.take(~queued)
    sizes = np.unique(measured.concurrency)
    if len(sizes) < 2:
        raise MeasurementError(
            f"one batch size only ({sizes[0]:g}): how the time grows with the batch cannot be told"
            if len(sizes)
            else "no point is left to fit"
        )
    return measured, warnings + _falling(measured)


def _check_numbers(measured: Measurements) -> None:
    if not len(measured):
        raise MeasurementError("no measurement")
    least = {"concurrency": 1.0, "in_tokens": 0.0, "out_tokens": 1.0}
    for name in REQUIRED_COLUMNS:
        values = getattr(measured, name)
        bad = ~np.isfinite(values) | (values < least.get(name, 0.0))
        if name not in least:
            bad |= values == 0
        _refuse(name, values, bad)
    for name in ("ttft_ms", "e2e_ms"):
        values = getattr(measured, name)
        _refuse(name, values, np.isinf(values) | (values <= 0))


def _refuse(name: str, values: FloatArray, bad: BoolArray) -> None:
    if bad.any():
        first = int(np.flatnonzero(bad)[0])
        bound = {"concurrency": "at least 1", "in_tokens": "at least 0", "out_tokens": "at least 1"}
        raise MeasurementError(
            f"{COLUMN_NAMES[name][0]} of point {first + 1} is {values[first]:g}: expected a number "
            f"{bound.get(name, 'above 0')} ({bad.sum()} such points)"
        )


def _check_units(measured: Measurements) -> None:
    itl_ms = float(np.median(measured.itl_ms))
    if itl_ms < LEAST_ITL_MS:
        raise MeasurementError(f"the median ITL is {itl_ms:g} ms: are the times in seconds?")
    if itl_ms > GREATEST_ITL_MS:
        raise MeasurementError(
            f"the median ITL is {itl_ms:g} ms: are the times in microseconds, or of whole requests?"
        )
    odd = (measured.itl_ms < LEAST_ITL_MS) | (measured.itl_ms > GREATEST_ITL_MS)
    if odd.any():
        first = int(np.flatnonzero(odd)[0])
        raise MeasurementError(
            f"the ITL of point {first + 1} is {measured.itl_ms[first]:g} ms, the median {itl_ms:g} ms: are "
            f"the units mixed? ({odd.sum()} such points)"
        )
    ratio = measured.ttft_ms / measured.itl_ms
    if np.isfinite(ratio).any() and float(np.nanmedian(ratio)) < 0.5:
        raise MeasurementError(
            "the TTFT is less than half an iteration in most points: "
            "is it in seconds, are columns swapped, or is the ITL of whole requests?"
        )


def _check_end_to_end(measured: Measurements) -> list[str]:
    """Compare the end-to-end time with its parts, where all are given."""
    decode_ms = (measured.out_tokens - 1) * measured.itl_ms
    known = np.isfinite(measured.e2e_ms) & np.isfinite(measured.ttft_ms) & (decode_ms > 0)
    if not known.any():
        return []
    ratio = (measured.e2e_ms - measured.ttft_ms)[known] / decode_ms[known]
    whole = (measured.e2e_ms / (measured.out_tokens * measured.itl_ms))[known]
    if float(np.median(np.abs(whole - 1.0))) < SAME < float(np.median(np.abs(ratio - 1.0))):
        raise MeasurementError(
            "the ITL is the end-to-end time over the output tokens, with the first token in it: "
            "(end-to-end time - TTFT) / (output tokens - 1) is needed"
        )
    share = float(np.median(ratio))
    if share <= 0.0:
        raise MeasurementError("the end-to-end time is less than the TTFT in most points: is it in seconds?")
    if abs(share - 0.5) < E2E_TOLERANCE / 2:
        raise MeasurementError(
            "the end-to-end time less the TTFT is half of (output tokens - 1) x ITL: the ITL is counted twice"
        )
    if abs(share - 1.0) > E2E_TOLERANCE:
        return [
            f"the end-to-end time less the TTFT is {share:.2f} times (output tokens - 1) x ITL: "
            "they should agree"
        ]
    return []


def _check_alone(measured: Measurements) -> list[str]:
    """Compare the TTFT with the ITL where nothing else runs."""
    alone = (measured.concurrency <= 1.0) & np.isfinite(measured.ttft_ms)
    ratio = measured.ttft_ms[alone] / measured.itl_ms[alone]
    if not len(ratio) or float(np.median(ratio)) >= LONE_TTFT_ITL:
        return []
    return [
        "the TTFT of a request that is alone is less than the time between two of its tokens: is the ITL "
        "counted twice?"
    ]


def _falling(measured: Measurements) -> list[str]:
    """Name the shapes whose ITL falls from one batch size to the next larger one."""
    falling = 0
    for shape in range(int(measured.shape_index.max()) + 1):
        points = measured.take(measured.shape_index == shape)
        sizes, index = np.unique(points.concurrency, return_inverse=True)
        mean = np.bincount(index, points.itl_ms) / np.bincount(index)
        falling += bool(len(sizes) > 1 and (mean[1:] < (1 - FALLING_ITL) * mean[:-1]).any())
    if not falling:
        return []
    return [
        f"the ITL falls by more than {FALLING_ITL:.0%} where the batch grows, in {falling} request shapes"
    ]


def _csv_rows(text: str) -> Iterator[dict[str, float]]:
    if not text.strip():
        raise MeasurementError("the file is empty")
    lines = csv.DictReader(text.splitlines())
    names = {str(name).strip().lower(): str(name) for name in lines.fieldnames or ()}
    column: dict[str, str] = {}
    for attribute, spellings in COLUMN_NAMES.items():
        found = [names[spelling] for spelling in spellings if spelling in names]
        if found:
            column[attribute] = found[0]
        elif attribute in REQUIRED_COLUMNS:
            raise MeasurementError(f"no column {' or '.join(spellings)}; the columns are {', '.join(names)}")
    for line, row in enumerate(lines, start=2):
        point: dict[str, float] = {}
        for attribute, name in column.items():
            cell = (row[name] or "").strip()
            if not cell and attribute not in REQUIRED_COLUMNS:
                continue
            try:
                point[attribute] = float(cell)
            except ValueError as error:
                raise MeasurementError(f"line {line}, column {name}: {cell!r} is no number") from error
        yield point


def _json_rows(text: str) -> Iterator[dict[str, float]]:
    if not text.strip():
        raise MeasurementError("the file is empty")
    try:
        documents = [json.loads(text)]
    except json.JSONDecodeError:
        try:
            documents = [json.loads(line) for line in text.splitlines() if line.strip()]
        except json.JSONDecodeError as error:
            raise MeasurementError(f"neither JSON nor JSON lines: {error}") from error
    if len(documents) == 1 and isinstance(documents[0], list):
        documents = documents[0]
    for document in documents:
        if not isinstance(document, dict):
            raise MeasurementError("an object was expected")
        if isinstance(document.get("benchmarks"), list):
            for benchmark in document["benchmarks"]:
                yield _guidellm_point(benchmark)
        elif "mean_tpot_ms" in document:
            yield _vllm_point(document)
        else:
            raise MeasurementError(
                "neither a guidellm report (key 'benchmarks') nor a vLLM result (key 'mean_tpot_ms')"
            )


def _guidellm_point(benchmark: Any) -> dict[str, float]:
    def mean(metric: str) -> float:
        try:
            return float(benchmark["metrics"][metric]["successful"]["mean"])
        except (KeyError, TypeError, ValueError) as error:
            raise MeasurementError(f"no metrics.{metric}.successful.mean in a benchmark") from error

    if mean("output_token_count") < 1:
        raise MeasurementError("no request of a benchmark was completed")
    point = {
        "concurrency": max(mean("request_concurrency"), 1.0),
        "in_tokens": mean("prompt_token_count"),
        "out_tokens": mean("output_token_count"),
        "itl_ms": mean("inter_token_latency_ms"),
        "ttft_ms": mean("time_to_first_token_ms"),
    }
    if benchmark["metrics"].get("request_latency") is not None:
        point["e2e_ms"] = mean("request_latency") * MS_PER_S
    return point


def _vllm_point(result: Mapping[str, Any]) -> dict[str, float]:
    def number(key: str) -> float:
        try:
            return float(result[key])
        except (KeyError, TypeError, ValueError) as error:
            raise MeasurementError(f"no number {key!r}") from error

    completed = number("completed")
    if completed < 1:
        raise MeasurementError("no request was completed")
    point = {
        "in_tokens": number("total_input_tokens") / completed,
        "out_tokens": number("total_output_tokens") / completed,
        # The mean over requests of (end - first token) / (tokens - 1); vLLM's ITL counts chunks, not tokens.
        "itl_ms": number("mean_tpot_ms"),
        "ttft_ms": number("mean_ttft_ms"),
    }
    if result.get("mean_e2el_ms") is not None:
        point["e2e_ms"] = number("mean_e2el_ms")
    limit = completed if result.get("max_concurrency") is None else number("max_concurrency")
    if limit < completed and float(result.get("request_rate") or inf) == inf:
        point["concurrency"] = limit
    else:
        # At a request rate, or with few requests, the limit is not what was reached. Little's law gives the
        # mean number of requests in the system.
        total_ms = point["ttft_ms"] + (point["out_tokens"] - 1) * point["itl_ms"]
        mean = completed * total_ms / (number("duration") * MS_PER_S)
        point["concurrency"] = min(max(mean, 1.0), limit)
    return point

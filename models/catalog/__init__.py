"""What ships with fleetopt: fitted profiles, GPU specifications and prices, each row with its source.

The tables are CSV files beside this module; README.md there names their sources and licences, and
`models.catalog.build` makes them. Nothing is kept between calls.
"""

from __future__ import annotations

import csv
from dataclasses import dataclass, fields
from importlib import resources
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

PROFILES, GPUS, PRICES = "profiles.csv", "gpus.csv", "prices.csv"


@dataclass(frozen=True)
class Profile:
    """A law fitted to measurements of one model in one configuration.

    Attributes
    ----------
    id : str
        ``model/gpu/engine/precision/tpN[-epM]/version``.
    cards : int
        GPUs of one replica.
    expert_parallel : int
        GPUs over which the experts are spread; 1 = not.
    form : str
        A `models.fit.Form`.
    alpha_ms, beta_ms, gamma_ms, beta_prefill_ms, epsilon_ms, expert_fraction, prefill_floor_ms : float
        Parameters as in `models.fit.predict`; NaN where the form has no such parameter.
    mean_error, worst_error, held_out_error, ttft_error : float
        As in `models.fit.Fit`: shares, not percent.
    points : int
        Points fitted.
    batch_low, batch_high, in_low, in_high, out_low, out_high : float
        The range measured: batch, input and output tokens.
    weights_gb : float
        All weights, GB (10^9 bytes), estimated from the parameters and the precision.
    kv_bytes_per_token : float
        KV cache of one token on the whole replica, at 16 bits a number.
    measured : str
        Date or dates of the measurements, as given by the source; empty where it gives none.
    source, licence : str
    warnings : str
        What makes the fit less sure than its error says; joined by "; ".
    """

    id: str
    model: str
    gpu: str
    engine: str
    version: str
    precision: str
    cards: int
    expert_parallel: int
    form: str
    alpha_ms: float
    beta_ms: float
    gamma_ms: float
    beta_prefill_ms: float
    epsilon_ms: float
    expert_fraction: float
    prefill_floor_ms: float
    mean_error: float
    worst_error: float
    held_out_error: float
    ttft_error: float
    points: int
    batch_low: float
    batch_high: float
    in_low: float
    in_high: float
    out_low: float
    out_high: float
    weights_gb: float
    kv_bytes_per_token: float
    measured: str
    source: str
    licence: str
    warnings: str


@dataclass(frozen=True)
class Gpu:
    """Data sheet of one card.

    Attributes
    ----------
    mem_gb : float
        Memory, GB (10^9 bytes).
    bf16_tflops, fp8_tflops : float
        Dense peak; NaN where the card has no such arithmetic.
    power_w : float
        Thermal design power.
    per_node : int
        Cards of the usual machine.
    """

    gpu: str
    mem_gb: float
    mem_bw_gb_per_s: float
    bf16_tflops: float
    fp8_tflops: float
    power_w: float
    per_node: int
    source: str
    licence: str


@dataclass(frozen=True)
class Price:
    """Rent of one card as part of an instance, USD per hour.

    Attributes
    ----------
    region : str
        Empty where the cloud has one price, or the source names no region.
    usd_per_gpu_h, spot_usd_per_gpu_h : float
        NaN where there is none.
    as_of : str
        Date of the price; "undated" where the source gives none.
    """

    cloud: str
    region: str
    gpu: str
    instance_type: str
    cards: int
    usd_per_gpu_h: float
    spot_usd_per_gpu_h: float
    as_of: str
    source: str
    licence: str


Row = TypeVar("Row", Profile, Gpu, Price)


def profiles() -> tuple[Profile, ...]:
    """All profiles, sorted by id."""
    return _read(PROFILES, Profile)


def gpus() -> tuple[Gpu, ...]:
    """All cards, sorted by name."""
    return _read(GPUS, Gpu)


def prices() -> tuple[Price, ...]:
    """All prices, sorted by cloud, GPU, region and instance."""
    return _read(PRICES, Price)


def matching(rows: Iterable[Profile], reference: str) -> list[Profile]:
    """Profiles of a reference, the best one first.

    Parameters
    ----------
    rows : iterable of Profile
    reference : str
        An id, or its first parts: ``llama-3.1-70b/h100_sxm``. Case does not matter.

    Returns
    -------
    list of Profile
        By held-out error; empty when nothing matches.
    """
    wanted = reference.lower().strip("/").split("/")
    found = [row for row in rows if row.id.split("/")[: len(wanted)] == wanted]
    return sorted(found, key=lambda row: (row.held_out_error, row.id))


def cheapest(
    rows: Iterable[Price], *, gpu: str, cloud: str, region: str | None = None, spot: bool = False
) -> Price | None:
    """Return the cheapest price among the newest of a cloud for a card, None where it has none.

    Parameters
    ----------
    rows : iterable of Price
    gpu, cloud : str
    region : str, optional
        None: any.
    spot : bool
        The price of interruptible instances.
    """

    def usd(row: Price) -> float:
        return row.spot_usd_per_gpu_h if spot else row.usd_per_gpu_h

    found = [
        row
        for row in rows
        if row.gpu == gpu
        and row.cloud == cloud.lower()
        and (region is None or row.region == region)
        and usd(row) > 0
    ]
    newest = max((row.as_of for row in found if row.as_of[0].isdigit()), default="undated")
    return min((row for row in found if row.as_of == newest), key=usd, default=None)


def _read(name: str, row_type: type[Row]) -> tuple[Row, ...]:
    convert: dict[str, Callable[[str], Any]] = {
        "str": str,
        "int": int,
        "float": lambda cell: float(cell or "nan"),
    }
    text = resources.files(__name__).joinpath(name).read_text(encoding="utf-8")
    return tuple(
        row_type(**{field.name: convert[str(field.type)](line[field.name]) for field in fields(row_type)})
        for line in csv.DictReader(text.splitlines())
    )

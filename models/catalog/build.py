"""Make the tables of the catalogue from the raw data of the repository.

Usage: ``python -m models.catalog.build [DATA]``, DATA being the folder ``data`` of the repository.
"""

from __future__ import annotations

import csv
import gzip
import io
import sys
from collections import defaultdict
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import numpy as np

from models.catalog import GPUS, PRICES, PROFILES, Gpu, Price, Profile
from models.fit import Expectation, Fit, Form, expectation, fit
from models.measurements import MeasurementError, Measurements, from_rows

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

SILICON_SOURCE = "ai-dynamo/aiconfigurator @ 095f58a, silicon_sample.csv"
SPLITWISE_SOURCE = "Mutinifni/splitwise-sim @ 8f99e7d, data/perf_model.csv"
SAGESERVE_SOURCE = "shashwatj07/SageServe @ 0b95ca2, data/Llama-3.*.csv"

# Bytes of a weight by precision; 4-bit formats carry a scale for every 16 or 32 weights.
WEIGHT_BYTES = {"fp16": 2.0, "bf16": 2.0, "na": 2.0, "fp8": 1.0, "fp4": 0.56, "int4": 0.53}

BYTES_PER_GB = 1e9
GB_PER_GIB = 2**30 / 1e9

# Only laws that tell request shapes apart: the measurements are of several.
FORMS = tuple(form for form in Form if form.value.startswith("law 3"))

# Least number of points, shapes and batch sizes of a group that is fitted at all.
LEAST_POINTS, LEAST_SHAPES, LEAST_BATCH_SIZES = 6, 2, 3

# A fit whose error at unseen shapes is above this is no profile.
GREATEST_HELD_OUT_ERROR = 0.25

# Names of the cards in the price list. Cards without a data sheet in the catalogue are left out.
PRICED = {
    "A100-80GB": "a100_sxm",
    "H100-80GB": "h100_sxm",
    "H100-PCIe-80GB": "h100_pcie",
    "H200-141GB": "h200_sxm",
    "B200-180GB": "b200_sxm",
    "B300-288GB": "b300_sxm",
    "L40S-48GB": "l40s",
    "L4-24GB": "l4",
}
PRICE_LICENCES = {
    "aws/karpenter-provider-aws": "Apache-2.0",
    "Azure/karpenter-provider-azure": "Apache-2.0",
    "the-full-stack/website": "MIT",
}
# Its prices are a fraction of everyone else's for the same card.
IMPLAUSIBLE_CLOUDS = ("dataoorts",)

SPLITWISE_GPUS = {"a100-80gb": "a100_sxm", "h100-80gb": "h100_sxm"}

T = TypeVar("T", Profile, Gpu, Price)


@dataclass(frozen=True)
class Size:
    """What the configuration of a model says about its cost."""

    parameters: float
    active_parameters: float
    expert_fraction: float | None
    kv_bytes_per_token: float
    kv_replicated: bool


@dataclass(frozen=True)
class Group:
    """Measurements of one model in one configuration."""

    path: str
    gpu: str
    engine: str
    version: str
    precision: str
    cards: int
    expert_parallel: int
    measured: str
    source: str
    licence: str
    points: Measurements

    @property
    def model(self) -> str:
        """Name of the model without its owner, in small letters."""
        return self.path.rsplit("/", 1)[-1].lower()

    @property
    def id(self) -> str:
        """Id of the profile."""
        parallel = f"tp{self.cards}" + (f"-ep{self.expert_parallel}" if self.expert_parallel > 1 else "")
        return "/".join((self.model, self.gpu, self.engine, self.precision, parallel, self.version))


def table(path: Path) -> list[dict[str, str]]:
    """Rows of a CSV file, gzipped or not."""
    text = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    return list(csv.DictReader(io.StringIO(text.decode("utf-8"))))


def sizes(data: Path) -> dict[str, Size]:
    """Sizes of the measured models, by path."""
    return {
        row["model_path"]: Size(
            parameters=float(row["parameters"]),
            active_parameters=float(row["active_parameters"]),
            expert_fraction=(
                int(row["experts_per_token"]) / int(row["experts"]) if row["experts_per_token"] else None
            ),
            kv_bytes_per_token=float(row["kv_bytes_per_token"]),
            kv_replicated=row["kv_replicated"] == "1",
        )
        for row in table(data / "model_sizes" / "model_sizes.csv")
    }


def gpus(data: Path) -> list[Gpu]:
    """The data sheets."""
    return [
        Gpu(
            gpu=row["system"],
            mem_gb=round(float(row["mem_gib"]) * GB_PER_GIB, 2),
            mem_bw_gb_per_s=float(row["mem_bw_gbs"]),
            bf16_tflops=float(row["bf16_tflops"]),
            fp8_tflops=float(row["fp8_tflops"] or "nan"),
            power_w=float(row["tdp_watt"]),
            per_node=int(row["gpus_per_node"]),
            source="ai-dynamo/aiconfigurator @ 095f58a, systems/*.yaml",
            licence="Apache-2.0",
        )
        for row in table(data / "gpu_catalog" / "gpu_specs.csv")
    ]


def prices(data: Path) -> Iterator[Price]:
    """The prices of cards that have a data sheet."""
    for row in table(data / "gpu_catalog" / "gpu_prices.csv"):
        # Azure's NC series has the PCIe card under the same name.
        gpu = "a100_pcie" if row["instance_type"].startswith("Standard_NC") else PRICED.get(row["gpu"])
        if row["gpu"] not in PRICED or gpu is None or row["cloud"] in IMPLAUSIBLE_CLOUDS:
            continue
        if not (row["usd_per_gpu_hour"] or row["spot_usd_per_gpu_hour"]):
            continue
        yield Price(
            cloud=row["cloud"],
            region=row["region"],
            gpu=gpu,
            instance_type=row["instance_type"],
            cards=int(row["gpu_count"]),
            usd_per_gpu_h=float(row["usd_per_gpu_hour"] or "nan"),
            spot_usd_per_gpu_h=float(row["spot_usd_per_gpu_hour"] or "nan"),
            as_of=row["as_of"] if row["as_of"][0].isdigit() else "undated",
            source=row["source"],
            licence=PRICE_LICENCES.get(row["source"], "not stated"),
        )


def silicon_groups(data: Path) -> list[Group]:
    """Groups of the silicon table: aggregated serving, one replica, measured at a fixed concurrency.

    Left out: rows without a concurrency, with data-parallel attention (the batch of one rank is not known) or
    without a parallel layout. A row that several dumps repeat with other rounding counts once, as the median.
    """
    per_node = {row.gpu: row.per_node for row in gpus(data)}
    found: dict[tuple[str, ...], dict[tuple[float, ...], list[tuple[float, float]]]] = defaultdict(
        lambda: defaultdict(list)
    )
    dates: dict[tuple[str, ...], set[str]] = defaultdict(set)
    for row in table(data / "aic_silicon" / "silicon_e2e.csv.gz"):
        if row["mode"] != "agg" or not row["concurrency"]:
            continue
        if float(row["attention_dp_size"] or 1) != 1 or float(row["moe_tp_size"]) == 0:
            continue
        cards, moe_cards = int(float(row["tp_size"])), int(float(row["moe_tp_size"]))
        # Some dumps give tensor x expert parallelism where the others give the cards: the same points with 64
        # in one have 8 in the other, and a node has 8.
        if cards > per_node[row["system"]] == 8:
            cards = moe_cards
        key: tuple[str, ...] = (
            row["model_path"],
            row["system"],
            row["backend"],
            row["backend_version"] or "unversioned",
            row["precision"] or "na",
            str(cards),
            str(int(float(row["moe_ep_size"]))),
            row["gemm_quant_mode"],
            row["moe_quant_mode"],
        )
        point = (float(row["isl"]), float(row["osl"]), float(row["concurrency"]))
        found[key][point].append((float(row["silicon_tpot_ms"]), float(row["silicon_ttft_ms"])))
        dates[key].add(row["measured"])
    groups = []
    for key, points in found.items():
        model, gpu, engine, version, precision, cards_text, experts_text, *_ = key
        rows = []
        for (in_tokens, out_tokens, concurrency), latencies in points.items():
            itl_ms, ttft_ms = np.median(np.array(latencies), axis=0)
            rows.append(
                {
                    "concurrency": concurrency,
                    "in_tokens": in_tokens,
                    "out_tokens": out_tokens,
                    "itl_ms": float(itl_ms),
                    "ttft_ms": float(ttft_ms),
                }
            )
        groups.append(
            Group(
                path=model,
                gpu=gpu,
                engine=engine,
                version=version,
                precision=precision,
                cards=int(cards_text),
                expert_parallel=int(experts_text),
                measured=_dates(dates[key]),
                source=SILICON_SOURCE,
                licence="Apache-2.0",
                points=from_rows(rows),
            )
        )
    return groups


def splitwise_groups(data: Path) -> list[Group]:
    """Groups of the Splitwise and SageServe tables: batches that start together.

    Left out: the power-capped rows, which are the others times a constant; llama2-70b on two cards at batch
    64, which did not fit in memory; SageServe's prefill times of batches, which do not depend on the batch.
    Repeats of a point count once, as the median.
    """
    found: dict[tuple[str, ...], dict[tuple[float, ...], list[tuple[float, float]]]] = defaultdict(
        lambda: defaultdict(list)
    )
    for row in table(data / "splitwise" / "perf_model_rows.csv.gz"):
        cards, batch = int(row["tensor_parallel"]), float(row["batch_size"])
        if row["hardware"] not in SPLITWISE_GPUS:
            continue
        if row["model"] == "llama2-70b" and cards == 2 and batch == 64:
            continue
        key = (row["source"], row["model"], row["hardware"], str(cards))
        point = (float(row["prompt_tokens"]), float(row["output_tokens"]), batch)
        found[key][point].append((float(row["itl_ms"]), float(row["prefill_ms"])))
    groups = []
    for (source, model, hardware, cards_text), points in found.items():
        rows = []
        for (in_tokens, out_tokens, batch), latencies in points.items():
            itl_ms, ttft_ms = np.median(np.array(latencies), axis=0)
            rows.append(
                {
                    "concurrency": batch,
                    "in_tokens": in_tokens,
                    "out_tokens": out_tokens,
                    "itl_ms": float(itl_ms),
                    "ttft_ms": float(ttft_ms) if batch == 1 or source == "splitwise-sim" else float("nan"),
                    "together": 1.0,
                }
            )
        groups.append(
            Group(
                path=model,
                gpu=SPLITWISE_GPUS[hardware],
                engine="splitwise" if source == "splitwise-sim" else "sageserve",
                version="unversioned",
                precision="fp16",
                cards=int(cards_text),
                expert_parallel=1,
                measured="",
                source=SPLITWISE_SOURCE if source == "splitwise-sim" else SAGESERVE_SOURCE,
                licence="MIT",
                points=from_rows(rows),
            )
        )
    return groups


def expected(group: Group, size: Size, gpu: Gpu) -> Expectation:
    """Cost of a KV token and of a prompt token by the data sheets."""
    peak = gpu.bf16_tflops if WEIGHT_BYTES[group.precision] == 2.0 else gpu.fp8_tflops
    return expectation(
        # A cache of latents is whole on every card.
        kv_bytes_per_token=size.kv_bytes_per_token * (group.cards if size.kv_replicated else 1),
        active_parameters=size.active_parameters,
        bytes_per_s=gpu.mem_bw_gb_per_s * 1e9,
        flop_per_s=peak * 1e12,
        cards=group.cards,
    )


def fit_group(group: Group, size: Size, gpu: Gpu) -> Fit:
    """Fit the forms of law 3 to a group."""
    return fit(
        group.points,
        expert_fraction=size.expert_fraction,
        expected=expected(group, size, gpu),
        forms=FORMS,
    )


def is_fitted(group: Group) -> bool:
    """Whether a group has enough points to be fitted at all."""
    return (
        len(group.points) >= LEAST_POINTS
        and int(group.points.shape_index.max()) + 1 >= LEAST_SHAPES
        and len(np.unique(group.points.concurrency)) >= LEAST_BATCH_SIZES
    )


def profile(group: Group, size: Size, gpu: Gpu) -> Profile:
    """Fit a group and write down what came out."""
    fitted = fit_group(group, size, gpu)

    def parameter(name: str) -> float:
        return _short(fitted.parameters.get(name, float("nan")))

    return Profile(
        id=group.id,
        model=group.model,
        gpu=group.gpu,
        engine=group.engine,
        version=group.version,
        precision=group.precision,
        cards=group.cards,
        expert_parallel=group.expert_parallel,
        form=fitted.form.value,
        alpha_ms=parameter("alpha"),
        beta_ms=parameter("beta"),
        gamma_ms=parameter("gamma"),
        beta_prefill_ms=parameter("betaPrefill"),
        epsilon_ms=parameter("epsilon"),
        expert_fraction=parameter("expertFraction"),
        prefill_floor_ms=parameter("prefillFloor"),
        mean_error=round(fitted.mean_error, 4),
        worst_error=round(fitted.worst_error, 4),
        held_out_error=round(fitted.held_out_error, 4),
        ttft_error=round(fitted.ttft_error, 4),
        points=fitted.points,
        batch_low=fitted.concurrency.low,
        batch_high=fitted.concurrency.high,
        in_low=fitted.in_tokens.low,
        in_high=fitted.in_tokens.high,
        out_low=fitted.out_tokens.low,
        out_high=fitted.out_tokens.high,
        weights_gb=_short(size.parameters * WEIGHT_BYTES[group.precision] / BYTES_PER_GB),
        kv_bytes_per_token=size.kv_bytes_per_token * (group.cards if size.kv_replicated else 1),
        measured=group.measured,
        source=group.source,
        licence=group.licence,
        warnings="; ".join(fitted.warnings),
    )


def profiles(data: Path) -> list[Profile]:
    """All profiles; of groups with one id the one with most points."""
    size_of, gpu_of = sizes(data), {row.gpu: row for row in gpus(data)}
    best: dict[str, Group] = {}
    for group in (*silicon_groups(data), *splitwise_groups(data)):
        if is_fitted(group) and (group.id not in best or len(group.points) > len(best[group.id].points)):
            best[group.id] = group
    found = []
    for group in best.values():
        try:
            found.append(profile(group, size_of[group.path], gpu_of[group.gpu]))
        except MeasurementError:
            # Nothing is left of it without the points that queued outside the batch.
            continue
    found = [row for row in found if row.held_out_error <= GREATEST_HELD_OUT_ERROR]
    return sorted(found, key=lambda row: row.id)


def to_csv(rows: Iterable[T], row_type: type[T]) -> str:
    """CSV text of rows; NaN is an empty cell."""
    names = [field.name for field in fields(row_type)]
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(names)
    for row in rows:
        writer.writerow([_cell(getattr(row, name)) for name in names])
    return out.getvalue()


def texts(data: Path) -> dict[str, str]:
    """Contents of the catalogue's files by name."""
    by_cloud = sorted(prices(data), key=lambda p: (p.cloud, p.gpu, p.region, p.instance_type, p.as_of))
    return {
        PROFILES: to_csv(profiles(data), Profile),
        GPUS: to_csv(sorted(gpus(data), key=lambda row: row.gpu), Gpu),
        PRICES: to_csv(by_cloud, Price),
    }


def _cell(value: object) -> object:
    if isinstance(value, float):
        return "" if np.isnan(value) else f"{value:.10g}"
    return value


def _short(value: float) -> float:
    """Five significant digits: far more than a fit knows."""
    return float(f"{value:.5g}")


def _dates(found: set[str]) -> str:
    days = sorted(day for day in found if day)
    if not days:
        return ""
    return days[0] if days[0] == days[-1] else f"{days[0]} to {days[-1]}"


def main(arguments: list[str]) -> None:
    """Write the files beside this module."""
    data = Path(arguments[0]) if arguments else Path("data")
    for name, text in texts(data).items():
        Path(__file__).with_name(name).write_text(text, encoding="utf-8")
        print(f"{name}: {len(text.splitlines()) - 1} rows")


if __name__ == "__main__":
    main(sys.argv[1:])

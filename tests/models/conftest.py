from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from models.laws import Candidates, Law

if TYPE_CHECKING:
    from collections.abc import Callable

    from models.laws import FloatArray

DATA = Path(__file__).parent.parent / "data" / "inferno_sample"


@dataclass(frozen=True)
class Sample:
    """Every (server, accelerator) pair of a sample system that has a profile, in the system's order."""

    servers: list[str]
    accelerators: list[str]
    arrival_rps: FloatArray
    candidates: Candidates

    def index(self, server: str, accelerator: str) -> int:
        return list(zip(self.servers, self.accelerators, strict=True)).index((server, accelerator))


def make_candidates(**columns: Any) -> Candidates:
    """Candidates from the columns given, scalars broadcast; the rest are the values that mean "off"."""
    defaults: dict[str, Any] = {
        "law": Law.DECODE_LINEAR,
        "gamma_s": 0.0,
        "delta_s": 0.0,
        "beta_prefill_s": columns.get("beta_s", 0.0),
        "prefill_floor_s": 0.0,
        "epsilon_s": 0.0,
        "expert_fraction": 0.0,
        "in_tokens": 0.0,
        "target_itl_s": 0.0,
        "target_ttft_s": 0.0,
        "throughput_target": False,
        "percentile": np.nan,
        "wait_factor": 1.0,
    }
    types = {"law": np.int64, "max_batch": np.int64, "max_queue": np.int64, "throughput_target": np.bool_}
    columns = defaults | columns
    length = np.broadcast(*columns.values()).size
    return Candidates(
        **{
            name: np.broadcast_to(value, length).astype(types.get(name, np.float64))
            for name, value in columns.items()
        }
    )


def _lower_keys(value: Any) -> Any:
    if isinstance(value, dict):
        return {key.lower(): _lower_keys(item) for key, item in value.items()}
    return [_lower_keys(item) for item in value] if isinstance(value, list) else value


def _parameters(profile: dict[str, Any], law: Law) -> tuple[float, float, float, float]:
    if law is Law.DECODE_LINEAR:
        return profile["alpha"], profile["beta"], 0.0, 0.0
    if law is Law.PREFILL_DECODE:
        decode, prefill = profile["decodeparms"], profile["prefillparms"]
        return decode["alpha"], decode["beta"], prefill["gamma"], prefill["delta"]
    parameters = profile["perfparms"]
    return parameters["alpha"], parameters["beta"], parameters["gamma"], 0.0


def load_sample(law: Law, size: str, queue_per_batch: int) -> Sample:
    document = _lower_keys(json.loads((DATA / f"law{law:d}-{size}.system.json").read_text()))
    system = document.get("system", document)
    targets = {
        (service_class["name"], target["model"]): target
        for service_class in system["serviceclassdata"]["serviceclasses"]
        for target in service_class["modeltargets"]
    }
    servers, accelerators, arrival_rps, rows = [], [], [], []
    for server in system["serverdata"]["servers"]:
        load = server["currentalloc"]["load"]
        target = targets[server["class"], server["model"]]
        out_tokens = load["avglength"] if law is Law.DECODE_LINEAR else load["avgouttokens"]
        tps = target.get("slo-tps", 0)
        for profile in system["modeldata"]["models"]:
            if profile["name"] != server["model"]:
                continue
            scaled = profile["maxbatchsize"] * profile["attokens"] // out_tokens
            max_batch = server.get("maxbatchsize", 0) or max(1, scaled)
            servers.append(server["name"])
            accelerators.append(profile["acc"])
            arrival_rps.append(tps / out_tokens if tps else load["arrivalrate"] / 60)
            rows.append(
                (
                    *_parameters(profile, law),
                    load.get("avgintokens", 0),
                    out_tokens,
                    max_batch,
                    target.get("slo-itl", 0),
                    target.get("slo-ttw", 0) or target.get("slo-ttft", 0),
                    tps > 0,
                )
            )
    table = np.array(rows, dtype=np.float64).T
    candidates = make_candidates(
        law=law,
        alpha_s=table[0] / 1000,
        beta_s=table[1] / 1000,
        gamma_s=table[2] / 1000,
        delta_s=table[3] / 1000,
        in_tokens=table[4],
        out_tokens=table[5],
        max_batch=table[6],
        max_queue=queue_per_batch * table[6],
        target_itl_s=table[7] / 1000,
        target_ttft_s=table[8] / 1000,
        throughput_target=table[9],
    )
    return Sample(servers, accelerators, np.array(arrival_rps), candidates)


@pytest.fixture(scope="session")
def make() -> Callable[..., Candidates]:
    return make_candidates


@pytest.fixture(scope="session")
def sample() -> Callable[[Law, str, int], Sample]:
    return load_sample


@pytest.fixture(scope="session")
def solution() -> Callable[[str], dict[str, Any]]:
    return lambda name: json.loads((DATA / f"{name}.json").read_text())

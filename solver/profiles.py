"""Profiles of a system as columns in SI units, one row for each (profile, batch limit to consider)."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

import numpy as np

from solver.units import BYTES_PER_GB, MS_PER_S

if TYPE_CHECKING:
    from solver import schema
    from solver.milp import BoolArray, FloatArray, IntArray

# Law number of a profile that is a measured capacity, with no law at all.
MEASURED = 0


@dataclass(frozen=True)
class Profiles:
    """Columns of the profiles whose accelerator the system has, every array of shape (p,).

    Attributes
    ----------
    accelerator, gpu_type : int
        Indices.
    law : int
        1, 2, 3, or `MEASURED`.
    alpha_s, beta_s, gamma_s, delta_s, beta_prefill_s, prefill_floor_s, epsilon_s, expert_fraction : float
        As in `models.laws.Candidates`; 0 where the law has no such parameter.
    memory_bytes, weight_bytes, kv_bytes_per_token : float
        Of a replica; 0 = not known.
    overhead_s : float
        Added to every TTFT.
    by_moments : bool
        Whether the law on moments sizes it.
    max_batch, at_tokens : int
        Largest batch, and the tokens of a request for which it holds (0: any).
    batch : int
        The batch limit to consider; 0 where the profile names none.
    rate_rps : float
        Capacity of a replica, where measured; else 0.
    gpus : int
        Cards of a replica.
    cost_per_h : float
        Of a replica.
    """

    accelerator: IntArray
    gpu_type: IntArray
    law: IntArray
    alpha_s: FloatArray
    beta_s: FloatArray
    gamma_s: FloatArray
    delta_s: FloatArray
    beta_prefill_s: FloatArray
    prefill_floor_s: FloatArray
    epsilon_s: FloatArray
    expert_fraction: FloatArray
    memory_bytes: FloatArray
    weight_bytes: FloatArray
    kv_bytes_per_token: FloatArray
    overhead_s: FloatArray
    by_moments: BoolArray
    max_batch: IntArray
    at_tokens: IntArray
    batch: IntArray
    rate_rps: FloatArray
    gpus: IntArray
    cost_per_h: FloatArray


_DTYPES: dict[str, type] = {"IntArray": np.int64, "FloatArray": np.float64, "BoolArray": np.bool_}


def read_profiles(
    system: schema.System, accelerators: tuple[str, ...], gpu_types: tuple[str, ...]
) -> tuple[Profiles, dict[str, IntArray]]:
    """Return the profiles, and the rows of each model sorted by accelerator and batch limit."""
    by_name = {a.name: a for a in system.accelerator_data.accelerators}
    index = {name: i for i, name in enumerate(accelerators)}
    type_index = {name: i for i, name in enumerate(gpu_types)}
    default_model = system.optimizer_data.optimizer.queue_model
    known = [profile for profile in system.model_data.models if profile.acc in by_name]
    records: list[tuple[float, ...]] = []
    rows: dict[str, list[int]] = {}
    for profile in sorted(known, key=lambda profile: index[profile.acc]):
        accelerator = by_name[profile.acc]
        # In the order of the fields of `Profiles`.
        record = (
            index[profile.acc],
            type_index[accelerator.type],
            profile.law,
            *[ms / MS_PER_S for ms in _law_parameters_ms(profile)],
            profile.perf_parms.expert_fraction if profile.perf_parms is not None else 0.0,
            profile.acc_count * accelerator.mem_size_gb * BYTES_PER_GB,
            profile.weight_size_gb * BYTES_PER_GB,
            profile.kv_bytes_per_token,
            profile.overhead_ms / MS_PER_S,
            (profile.queue_model or default_model) == "moments",
            profile.max_batch_size,
            profile.at_tokens,
        )
        last = (
            profile.rate_per_replica_rps or 0.0,
            profile.acc_count * accelerator.multiplicity,
            profile.acc_count * accelerator.cost_cents_per_h,
        )
        for batch in sorted(set(profile.batch_sizes)) or [0]:
            rows.setdefault(profile.name, []).append(len(records))
            records.append((*record, batch, *last))
    table = np.array(records, dtype=np.float64).reshape(len(records), len(fields(Profiles))).T
    columns: list[Any] = [
        column.astype(_DTYPES[str(field.type)]) for field, column in zip(fields(Profiles), table, strict=True)
    ]
    return Profiles(*columns), {model: np.array(found, dtype=np.int64) for model, found in rows.items()}


def _law_parameters_ms(profile: schema.ModelProfile) -> tuple[float, ...]:
    """Parameters of the profile's law in the order of `Profiles`, ms (per token); 0 where it has none."""
    alpha, beta, gamma, delta = profile.alpha_ms or 0.0, profile.beta_ms or 0.0, 0.0, 0.0
    beta_prefill = prefill_floor = epsilon = 0.0
    if profile.perf_parms is not None:
        law = profile.perf_parms
        alpha, beta, gamma = law.alpha_ms, law.beta_ms, law.gamma_ms
        beta_prefill = law.beta_ms if law.beta_prefill_ms is None else law.beta_prefill_ms
        prefill_floor, epsilon = law.prefill_floor_ms, law.epsilon_ms
    elif profile.decode_parms is not None and profile.prefill_parms is not None:
        alpha, beta = profile.decode_parms.alpha_ms, profile.decode_parms.beta_ms
        gamma, delta = profile.prefill_parms.gamma_ms, profile.prefill_parms.delta_ms
    return alpha, beta, gamma, delta, beta_prefill, prefill_floor, epsilon

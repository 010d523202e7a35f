"""System to AllocationProblem and Plan to Allocation: the only place where units change.

On the wire milliseconds, requests per minute and cents per hour; inside seconds, requests per second and the
input's money unit per hour.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from models import capacity, moments
from models.capacity import Metrics, Sizing, unloaded
from models.laws import Candidates
from models.memory import largest_batch
from solver import schema
from solver.check import carried_rps
from solver.curves import Curves
from solver.headroom import with_headroom
from solver.limits import granted, wanted_limits
from solver.problem import NO_LIMIT, AllocationProblem, Inventory, Policy, SaturationPolicy

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from solver.milp import BoolArray, FloatArray, IntArray
    from solver.problem import Plan

MS_PER_S = 1000.0
BYTES_PER_GB = 1e9
S_PER_MIN = 60.0

# Law number of a profile that is a measured capacity, with no law at all.
MEASURED = 0

# Queue places per batch place where `maxQueueSize` is absent, by law number; the reference's values.
_QUEUE_PER_BATCH = np.array([0, 9, 10, 10])


@dataclass(frozen=True)
class Fleet:
    """Every candidate (server, accelerator, batch limit) of a system, sized.

    Attributes
    ----------
    wire : tuple of schema.Server
        Sorted by name; S of them.
    accelerators, gpu_types : tuple of str
        Names, each sorted.
    server, accelerator : (K,) int
        Of each candidate; candidates are sorted by (server, accelerator, batch limit).
    law : (K,) int
        1, 2, 3, or `MEASURED`.
    loaded : (S,) bool
        Servers with load.
    arrival_rps : (S,) float
        Demand with its headroom; 0 without load.
    candidates : Candidates
        What the models see, one row a candidate.
    detail : moments.Detail
        What the law on moments takes beside.
    by_moments : (K,) bool
        Candidates that the law on moments sizes.
    sizing : Sizing
        NaN and zeros for measured capacity and for servers without load.
    capacity_rps : (K,) float
        Counting capacity of one replica: 0 when a target is missed at any rate, inf without load.
    memory_limited : (K,) bool
        Where the KV cache sets the batch limit.
    fits : (K,) bool
        Whether the memory holds one request at least.
    allowed : (K,) bool
        False where `keepAccelerator` rules the candidate out.
    gpu_type, gpus : (K,) int
    cost_per_h : (K,) float
        Of one replica.
    """

    wire: tuple[schema.Server, ...]
    accelerators: tuple[str, ...]
    gpu_types: tuple[str, ...]
    server: IntArray
    accelerator: IntArray
    law: IntArray
    loaded: BoolArray
    arrival_rps: FloatArray
    candidates: Candidates
    detail: moments.Detail
    by_moments: BoolArray
    sizing: Sizing
    capacity_rps: FloatArray
    memory_limited: BoolArray
    fits: BoolArray
    allowed: BoolArray
    gpu_type: IntArray
    gpus: IntArray
    cost_per_h: FloatArray

    @cached_property
    def _pair(self) -> IntArray:
        """Server and accelerator of each candidate as one rising number."""
        return self.server * max(len(self.accelerators), 1) + self.accelerator

    def candidate(self, server: int, accelerator: int) -> int | None:
        """Return the first candidate of a server on an accelerator; None where there is no profile."""
        pair = server * max(len(self.accelerators), 1) + accelerator
        k = int(np.searchsorted(self._pair, pair))
        return k if k < len(self._pair) and self._pair[k] == pair else None

    @property
    def options(self) -> IntArray:
        """Candidates that are options of the program, rising indices."""
        minimum = np.array([s.least_replicas for s in self.wire], dtype=np.int64)
        wanting = self.loaded | (minimum > 0)
        able = self.fits & (self.capacity_rps > 0)
        return np.flatnonzero(self.allowed & able & wanting[self.server])


@dataclass(frozen=True)
class _Rows:
    """Profiles as arrays, one row for each (profile, batch limit to consider), in SI units.

    `batch` is 0 where the profile names no limits of its own.
    """

    accelerator: IntArray
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
    gpu_type: IntArray
    gpus: IntArray
    cost_per_h: FloatArray


def size_fleet(system: schema.System, curves: Curves | None = None) -> Fleet:
    """Size every candidate of a valid system; `curves` remembers sizings between calls."""
    wire = tuple(sorted(system.server_data.servers, key=lambda s: s.name))
    accelerators = tuple(sorted(a.name for a in system.accelerator_data.accelerators))
    gpu_types = _gpu_types(system)
    rows, rows_of_model = _profile_rows(system, accelerators, gpu_types)
    optimizer = system.optimizer_data.optimizer
    targets = {
        (c.name, t.model): t for c in system.service_class_data.service_classes for t in c.model_targets
    }
    target = [targets.get((s.class_name, s.model), _NO_TARGET) for s in wire]
    load = [s.current_alloc.load for s in wire]

    length = np.array([x.length_tokens for x in load])
    in_tokens, out_tokens = np.array([x.in_out_tokens for x in load]).reshape(-1, 2).T
    # A request of any output has one token at least; a mean below 1 is one of requests without any.
    length, out_tokens = (np.where(x > 0, np.maximum(x, 1.0), 0.0) for x in (length, out_tokens))
    arrival_rpm = np.array([x.arrival_rate_rpm for x in load], dtype=np.float64)
    lists = [rows_of_model.get(s.model, _EMPTY) for s in wire]
    row = np.concatenate([*lists, _EMPTY])
    server = np.repeat(np.arange(len(wire)), [len(x) for x in lists])
    law = rows.law[row]

    # A measured capacity needs no tokens to be a capacity.
    measured = np.zeros(len(wire), dtype=bool)
    measured[server[law == MEASURED]] = True
    loaded = (arrival_rpm > 0) & ((out_tokens > 0) | (length > 0) | measured)
    tokens = np.where(law == 1, length[server], out_tokens[server])
    wanted = _batch_limits(
        rows, row, tokens, np.array([s.max_batch_size for s in wire], dtype=np.int64)[server]
    )
    request_tokens = np.where(law == 1, length[server], (in_tokens + out_tokens)[server])
    held = largest_batch(
        rows.memory_bytes[row], rows.weight_bytes[row], rows.kv_bytes_per_token[row], request_tokens
    )
    batch = np.minimum(wanted, np.maximum(held, 1))

    order = np.lexsort((batch, rows.accelerator[row], server))
    row, server, batch = row[order], server[order], batch[order]
    memory_limited, fits = (held < wanted)[order], (held > 0)[order]
    # Batch limits of one pair that were cut to the same limit are one candidate.
    first = np.r_[
        True, (np.diff(server) != 0) | (np.diff(rows.accelerator[row]) != 0) | (np.diff(batch) != 0)
    ]
    first = first[: len(row)]
    row, server, batch = row[first], server[first], batch[first]
    memory_limited, fits = memory_limited[first], fits[first]
    law, tokens = rows.law[row], np.where(rows.law[row] == 1, length[server], out_tokens[server])

    queue = np.array([-1 if s.max_queue_size is None else s.max_queue_size for s in wire], dtype=np.int64)
    tps = np.array([t.slo_tps for t in target])
    percentile = np.array(
        [_nan(t.slo_percentile if t.slo_percentile is not None else optimizer.slo_percentile) for t in target]
    )
    ttft_ms = np.where(
        law == 1,
        np.array([t.slo_ttw_ms or t.slo_ttft_ms for t in target])[server],
        np.array([t.slo_ttft_ms or t.slo_ttw_ms for t in target])[server],
    )
    candidates = Candidates(
        law=np.where(law == MEASURED, 1, law),
        alpha_s=rows.alpha_s[row],
        beta_s=rows.beta_s[row],
        gamma_s=rows.gamma_s[row],
        delta_s=rows.delta_s[row],
        beta_prefill_s=rows.beta_prefill_s[row],
        prefill_floor_s=rows.prefill_floor_s[row],
        epsilon_s=rows.epsilon_s[row],
        expert_fraction=rows.expert_fraction[row],
        in_tokens=np.where(law == 1, 0.0, in_tokens[server]),
        out_tokens=tokens,
        max_batch=batch,
        max_queue=np.where(queue[server] >= 0, queue[server], _QUEUE_PER_BATCH[law] * batch),
        target_itl_s=np.array([t.slo_itl_ms for t in target])[server] / MS_PER_S,
        target_ttft_s=ttft_ms / MS_PER_S,
        throughput_target=tps[server] > 0,
        percentile=percentile[server],
        wait_factor=_wait_factor(load, burstiness=optimizer.burstiness)[server],
    )
    detail = moments.Detail(
        in_cov=np.array([x.in_tokens_cov or 0.0 for x in load])[server],
        out_cov=np.array([x.out_tokens_cov or 0.0 for x in load])[server],
        arrival_burstiness=_arrival_burstiness(load, asked=optimizer.burstiness)[server],
        overhead_s=rows.overhead_s[row],
    )
    by_moments = (law == 3) & rows.by_moments[row]
    able = (law != MEASURED) & loaded[server] & (tokens > 0)
    sizing = _no_sizing(len(server))
    curves = curves or Curves()
    _put(sizing, able, lambda i: curves.size(candidates.take(i), detail.take(i), by_moments[i]))
    capacity_rps = np.where(law == MEASURED, rows.rate_rps[row], sizing.capacity_rps)
    capacity_rps = np.where(loaded[server], capacity_rps, np.inf)

    demand_tokens = np.where(out_tokens > 0, out_tokens, 1.0)
    mean_rps = np.where(tps > 0, tps / demand_tokens, arrival_rpm / S_PER_MIN) * loaded
    arrival_rps = with_headroom(system, wire, mean_rps)
    return Fleet(
        wire=wire,
        accelerators=accelerators,
        gpu_types=gpu_types,
        server=server,
        accelerator=rows.accelerator[row],
        law=law,
        loaded=loaded,
        arrival_rps=arrival_rps,
        candidates=candidates,
        detail=detail,
        by_moments=by_moments,
        sizing=sizing,
        capacity_rps=capacity_rps,
        memory_limited=memory_limited,
        fits=fits,
        allowed=_allowed(wire, accelerators, server, rows.accelerator[row]),
        gpu_type=rows.gpu_type[row],
        gpus=rows.gpus[row],
        cost_per_h=rows.cost_per_h[row],
    )


_EMPTY = np.empty(0, dtype=np.int64)
_NO_TARGET = schema.ModelTarget(model="(none)")


def _nan(value: float | None) -> float:
    return np.nan if value is None else value


def _gpu_types(system: schema.System) -> tuple[str, ...]:
    names = {a.type for a in system.accelerator_data.accelerators}
    names |= {c.type for c in system.capacity_data.count} | {n.type for n in system.capacity_data.nodes}
    return tuple(sorted(names))


def _profile_rows(
    system: schema.System, accelerators: tuple[str, ...], gpu_types: tuple[str, ...]
) -> tuple[_Rows, dict[str, IntArray]]:
    """Profiles of known accelerators as `_Rows`, and the rows of each model."""
    by_name = {a.name: a for a in system.accelerator_data.accelerators}
    index = {name: i for i, name in enumerate(accelerators)}
    type_index = {name: i for i, name in enumerate(gpu_types)}
    default_model = system.optimizer_data.optimizer.queue_model
    records: list[dict[str, float]] = []
    rows_of_model: dict[str, list[int]] = {}
    for profile in system.model_data.models:
        accelerator = by_name.get(profile.acc)
        if accelerator is None:
            continue
        record = {
            "accelerator": index[profile.acc],
            "law": profile.law,
            **{name: ms / MS_PER_S for name, ms in _law_parameters_ms(profile).items()},
            "expert_fraction": profile.perf_parms.expert_fraction if profile.perf_parms is not None else 0.0,
            "memory_bytes": profile.acc_count * accelerator.mem_size_gb * BYTES_PER_GB,
            "weight_bytes": profile.weight_size_gb * BYTES_PER_GB,
            "kv_bytes_per_token": profile.kv_bytes_per_token,
            "overhead_s": profile.overhead_ms / MS_PER_S,
            "by_moments": (profile.queue_model or default_model) == "moments",
            "max_batch": profile.max_batch_size,
            "at_tokens": profile.at_tokens,
            "rate_rps": profile.rate_per_replica_rps or 0.0,
            "gpu_type": type_index[accelerator.type],
            "gpus": profile.acc_count * accelerator.multiplicity,
            "cost_per_h": profile.acc_count * accelerator.cost_cents_per_h,
        }
        for batch in sorted(set(profile.batch_sizes)) or [0]:
            rows_of_model.setdefault(profile.name, []).append(len(records))
            records.append({**record, "batch": batch})
    rows = _Rows(
        **{
            field.name: np.array(
                [r[field.name] for r in records], dtype=_DTYPES.get(str(field.type), np.int64)
            )
            for field in fields(_Rows)
        }
    )
    return rows, {model: np.array(found, dtype=np.int64) for model, found in rows_of_model.items()}


_DTYPES: dict[str, type] = {"FloatArray": np.float64, "BoolArray": np.bool_}


def _law_parameters_ms(profile: schema.ModelProfile) -> dict[str, float]:
    """Parameters of the profile's law by their names in `_Rows`, ms (per token); 0 where it has none."""
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
    return {
        "alpha_s": alpha,
        "beta_s": beta,
        "gamma_s": gamma,
        "delta_s": delta,
        "beta_prefill_s": beta_prefill,
        "prefill_floor_s": prefill_floor,
        "epsilon_s": epsilon,
    }


def _batch_limits(rows: _Rows, row: IntArray, tokens: FloatArray, server_limit: IntArray) -> IntArray:
    """Batch limit N of each candidate, >= 1.

    The server's limit if given, else floor(profile maxBatchSize x atTokens / tokens); without atTokens (or
    without tokens) the profile's maxBatchSize as it is. A limit of `batchSizes` above that is cut to it.
    """
    scaled = (rows.at_tokens[row] > 0) & (tokens > 0)
    limit = rows.max_batch[row].astype(np.float64)
    limit[scaled] *= rows.at_tokens[row][scaled] / tokens[scaled]
    # The tolerance keeps an exact quotient from falling to the integer below.
    natural = np.maximum(np.floor(limit * (1 + 1e-12)), 1).astype(np.int64)
    natural = np.where(server_limit > 0, server_limit, natural)
    wanted = rows.batch[row]
    return np.where(wanted > 0, np.minimum(wanted, natural), natural)


def _wait_factor(load: list[schema.Load], *, burstiness: bool) -> FloatArray:
    """(Ca^2 + Cs^2) / 2 where burstiness is asked for; a coefficient of 0 or absent counts as 1."""
    service = np.array([x.service_cov or 1.0 for x in load])
    result: FloatArray = (_arrival_burstiness(load, asked=burstiness) + service**2) / 2.0
    return result if burstiness else np.ones(len(load))


def _arrival_burstiness(load: list[schema.Load], *, asked: bool) -> FloatArray:
    """Ca^2 where it is asked for; a coefficient of 0 or absent counts as 1."""
    result: FloatArray = np.array([x.arrival_cov or 1.0 for x in load]) ** 2
    return result if asked else np.ones(len(load))


def _no_sizing(count: int) -> Sizing:
    """Sizing of nothing: no capacity, latencies not known."""
    zeros, unknown = np.zeros(count), np.full(count, np.nan)
    return Sizing(zeros, zeros.copy(), np.zeros(count, dtype=np.int64), unknown, unknown.copy())


def _put(whole: Sizing | Metrics, mask: BoolArray, part_of: Callable[[IntArray], Sizing | Metrics]) -> None:
    """Write the figures of the candidates in `mask` into `whole`."""
    index = np.flatnonzero(mask)
    if not index.size:
        return
    part = part_of(index)
    for field in fields(whole):
        getattr(whole, field.name)[index] = getattr(part, field.name)


def _allowed(
    wire: tuple[schema.Server, ...], accelerators: tuple[str, ...], server: IntArray, accelerator: IntArray
) -> BoolArray:
    """False where a server keeps its accelerator and the candidate is another one."""
    index = {name: i for i, name in enumerate(accelerators)}
    kept = np.array([index.get(s.current_alloc.accelerator, -1) if s.keep_accelerator else -1 for s in wire])
    result: BoolArray = (kept[server] < 0) | (kept[server] == accelerator)
    return result


def to_problem(system: schema.System, fleet: Fleet) -> AllocationProblem:
    """Write the problem whose options are ``fleet.options``, in that order."""
    optimizer = system.optimizer_data.optimizer
    options = fleet.options
    priority = {c.name: c.priority for c in system.service_class_data.service_classes}
    current = _current(fleet)
    problem = AllocationProblem(
        servers=tuple(s.name for s in fleet.wire),
        accelerators=fleet.accelerators,
        gpu_types=fleet.gpu_types,
        arrival_rps=fleet.arrival_rps,
        min_replicas=np.array([s.least_replicas for s in fleet.wire], dtype=np.int64),
        max_replicas=np.array(
            [NO_LIMIT if s.max_num_replicas is None else s.max_num_replicas for s in fleet.wire],
            dtype=np.int64,
        ),
        priority=np.array([priority[s.class_name] for s in fleet.wire], dtype=np.int64),
        weight=np.array([s.weight for s in fleet.wire], dtype=np.float64),
        option_server=fleet.server[options],
        option_accelerator=fleet.accelerator[options],
        option_batch=fleet.candidates.max_batch[options],
        capacity_rps=fleet.capacity_rps[options],
        gpu_type=fleet.gpu_type[options],
        gpus=fleet.gpus[options],
        cost_per_h=fleet.cost_per_h[options],
        current_server=np.array([c[0] for c in current], dtype=np.int64),
        current_accelerator=np.array([c[1] for c in current], dtype=np.int64),
        current_cost_per_h=np.array([c[3] for c in current], dtype=np.float64),
        inventory=_inventory(system, fleet),
        policy=Policy(
            max_types=optimizer.max_types_per_server if optimizer.heterogeneous else 1,
            saturation=SaturationPolicy(optimizer.saturation_policy),
            delayed_best_effort=optimizer.delayed_best_effort,
            switching_factor=optimizer.switching_penalty,
        ),
        own_max_types=tuple(
            (index, s.max_types) for index, s in enumerate(fleet.wire) if s.max_types is not None
        ),
    )
    return replace(problem, limits=granted(problem, wanted_limits(fleet)))


def _current(fleet: Fleet) -> list[tuple[int, int, int, float]]:
    """Server, accelerator, replicas and cost per hour of everything that runs now.

    A cost that the document leaves out is that of the replicas at today's price.
    """
    index = {name: i for i, name in enumerate(fleet.accelerators)}
    found = []
    for s, server in enumerate(fleet.wire):
        alloc = server.current_alloc
        running: Iterable[schema.AllocPart | schema.Alloc] = alloc.parts or [alloc]
        for part in running:
            if part.accelerator:
                a = index[part.accelerator]
                k = fleet.candidate(s, a)
                today = 0.0 if k is None else part.num_replicas * float(fleet.cost_per_h[k])
                cost = part.cost_cents_per_h or today
                found.append((s, a, part.num_replicas, cost))
    return found


def held_gpus(fleet: Fleet) -> IntArray:
    """GPUs of each type that servers without any option hold, shape (T,).

    Such a server is left out of the answer and keeps what it runs, so its GPUs are not there to give away.
    """
    has_option = np.zeros(len(fleet.wire), dtype=bool)
    has_option[fleet.server[fleet.options]] = True
    held = np.zeros(len(fleet.gpu_types), dtype=np.int64)
    for s, a, replicas, _ in _current(fleet):
        k = fleet.candidate(s, a)
        if k is not None and not has_option[s] and needs_something(fleet, s):
            held[fleet.gpu_type[k]] += replicas * fleet.gpus[k]
    return held


def needs_something(fleet: Fleet, server: int) -> bool:
    """Whether a server has load or a minimum of replicas."""
    return bool(fleet.loaded[server]) or fleet.wire[server].least_replicas > 0


def _inventory(system: schema.System, fleet: Fleet) -> Inventory:
    """GPUs that can be given away; where both a count and nodes are given, both hold."""
    count = len(fleet.gpu_types)
    if system.optimizer_data.optimizer.unlimited:
        return Inventory(np.full(count, NO_LIMIT), (None,) * count)
    counted = {c.type: c.count for c in system.capacity_data.count}
    nodes: dict[str, list[int]] = {}
    for node in system.capacity_data.nodes:
        nodes.setdefault(node.type, []).append(node.count)
    gpus = np.array([counted.get(t, sum(nodes.get(t, []))) for t in fleet.gpu_types], dtype=np.int64)
    return Inventory(
        np.maximum(gpus - held_gpus(fleet), 0),
        tuple(tuple(nodes[t]) if t in nodes else None for t in fleet.gpu_types),
    )


def to_allocations(fleet: Fleet, problem: AllocationProblem, plan: Plan) -> dict[str, schema.Allocation]:
    """Allocation of every server that the plan decides about.

    Latencies are those of each replica at the load it carries. A server that no option can serve is absent:
    it keeps what it runs. One that gets nothing, for lack of load or of GPUs, is there with 0 replicas.
    """
    used = np.flatnonzero(plan.replicas > 0)
    carried = carried_rps(problem, plan)[used]
    candidates = fleet.options[used]
    metrics = metrics_at(fleet, candidates, carried / plan.replicas[used])
    parts: dict[int, list[schema.AllocPart]] = {}
    for position, j in enumerate(used.tolist()):
        k = int(candidates[position])
        s = int(fleet.server[k])
        replicas = int(plan.replicas[j])
        parts.setdefault(s, []).append(
            # Constructed without validation: a latency that is not known is NaN, written as null.
            schema.AllocPart.model_construct(
                accelerator=fleet.accelerators[fleet.accelerator[k]],
                num_replicas=replicas,
                max_batch=int(fleet.candidates.max_batch[k]),
                cost_cents_per_h=replicas * float(fleet.cost_per_h[k]),
                itl_average_ms=in_ms(float(metrics.itl_s[position])),
                ttft_average_ms=in_ms(float(metrics.ttft_s[position])),
                load=_load(fleet.wire[s], float(carried[position])),
            )
        )
    has_option = set(fleet.server[fleet.options].tolist())
    return {
        server.name: _allocation(server, parts.get(s, []))
        for s, server in enumerate(fleet.wire)
        if s in has_option or not needs_something(fleet, s)
    }


def _allocation(server: schema.Server, parts: list[schema.AllocPart]) -> schema.Allocation:
    """Join the parts of one server; of a mix the accelerator that carries the most load stands at the top."""
    if not parts:
        return schema.Allocation(
            accelerator="",
            num_replicas=0,
            max_batch=0,
            cost_cents_per_h=0.0,
            itl_average_ms=0.0,
            ttft_average_ms=0.0,
            load=_load(server, 0.0),
        )
    main = max(parts, key=lambda part: part.load.arrival_rate_rpm)
    carried = sum(part.load.arrival_rate_rpm for part in parts)

    def mean(values: list[float]) -> float:
        if carried == 0:
            return values[parts.index(main)]
        return sum(v * part.load.arrival_rate_rpm for v, part in zip(values, parts, strict=True)) / carried

    ttft = mean([part.ttft_average_ms for part in parts])
    return schema.Allocation(
        accelerator=main.accelerator,
        num_replicas=sum(part.num_replicas for part in parts),
        max_batch=main.max_batch,
        cost_cents_per_h=sum(part.cost_cents_per_h for part in parts),
        itl_average_ms=mean([part.itl_average_ms for part in parts]),
        ttft_average_ms=ttft,
        wait_average_ms=ttft if server.current_alloc.load.avg_length is not None else None,
        load=_load(server, carried / S_PER_MIN),
        parts=parts if len(parts) > 1 else None,
    )


def _load(server: schema.Server, rps: float) -> schema.Load:
    """Return the server's load as the input gave it, at this rate."""
    return server.current_alloc.load.model_copy(update={"arrival_rate_rpm": rps * S_PER_MIN})


def metrics_at(fleet: Fleet, which: IntArray, arrival_rps: FloatArray) -> Metrics:
    """Metrics of one replica of the candidates `which` at these rates, shapes (n,).

    A replica without load is judged by a single request. Of a measured capacity nothing is known: NaN.
    """
    chosen, detail, by_moments = (
        fleet.candidates.take(which),
        fleet.detail.take(which),
        fleet.by_moments[which],
    )
    modelled = fleet.law[which] != MEASURED
    alone = (arrival_rps <= 0) | (chosen.out_tokens <= 0)
    metrics = Metrics(**{field.name: np.full(len(which), np.nan) for field in fields(Metrics)})
    _put(metrics, modelled & alone, lambda i: unloaded(chosen.take(i)))
    _put(
        metrics,
        modelled & ~alone & ~by_moments,
        lambda i: capacity.evaluate(chosen.take(i), arrival_rps[i]),
    )
    _put(
        metrics,
        modelled & ~alone & by_moments,
        lambda i: moments.evaluate(chosen.take(i), detail.take(i), arrival_rps[i]),
    )
    return metrics


def in_ms(seconds: float) -> float:
    """Seconds as milliseconds, for a sentence."""
    return seconds * MS_PER_S


def in_rpm(rps: float) -> float:
    """Requests per second as requests per minute, for a sentence."""
    return rps * S_PER_MIN


def from_rpm(rpm: float) -> float:
    """Requests per minute as requests per second."""
    return rpm / S_PER_MIN

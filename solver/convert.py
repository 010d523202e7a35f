"""System to AllocationProblem, and Plan to Allocation."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from pydantic import TypeAdapter

from solver import schema
from solver.check import carried_rps
from solver.limits import granted, wanted_limits
from solver.problem import NO_LIMIT, AllocationProblem, Inventory, Policy, SaturationPolicy
from solver.sizing import metrics_at
from solver.starts import Running
from solver.units import MS_PER_S, S_PER_MIN

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from solver.milp import FloatArray, IntArray
    from solver.problem import Plan
    from solver.sizing import Fleet

# Thousands of objects are validated in one call: one by one takes twice as long.
_ALLOCATIONS = TypeAdapter(dict[str, schema.Allocation])

# A rate this close to the one given is that one: S_PER_MIN times a quotient by it need not be the same float.
_SAME_RATE = 1e-12


def to_problem(system: schema.System, fleet: Fleet) -> AllocationProblem:
    """Write the problem whose options are ``fleet.options``, in that order."""
    optimizer = system.optimizer_data.optimizer
    options = fleet.options
    priority = {c.name: c.priority for c in system.service_class_data.service_classes}
    running = _Running.of(fleet)
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
        current_server=running.server,
        current_accelerator=running.accelerator,
        current_cost_per_h=running.cost_per_h,
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


@dataclass(frozen=True)
class _Running:
    """What runs now, one row for each accelerator a server runs on, every array of shape (C,).

    Attributes
    ----------
    server, accelerator, batch, replicas : int
    candidate : int
        First candidate of the server on the accelerator; -1 where there is no profile.
    cost_per_h : float
        Of the replicas; where the document leaves it out, at today's price.
    """

    server: IntArray
    accelerator: IntArray
    batch: IntArray
    replicas: IntArray
    candidate: IntArray
    cost_per_h: FloatArray

    @classmethod
    def of(cls, fleet: Fleet) -> _Running:
        index = {name: i for i, name in enumerate(fleet.accelerators)}
        found = []
        for s, server in enumerate(fleet.wire):
            alloc = server.current_alloc
            running: Iterable[schema.AllocPart | schema.Alloc] = alloc.parts or (alloc,)
            found += [
                (s, index[part.accelerator], part.max_batch, part.num_replicas, part.cost_cents_per_h)
                for part in running
                if part.accelerator
            ]
        table = np.array(found, dtype=np.float64).reshape(-1, 5).T
        server_, accelerator, batch, replicas = table[:4].astype(np.int64)
        candidate = fleet.first_candidate(server_, accelerator)
        today = np.where(candidate >= 0, replicas * np.append(fleet.cost_per_h, 0.0)[candidate], 0.0)
        cost = np.where(table[4] > 0, table[4], today)
        return cls(server_, accelerator, batch, replicas, candidate, cost)


def running_now(fleet: Fleet) -> Running:
    """Return what the document says runs now."""
    now = _Running.of(fleet)
    return Running(now.server, now.accelerator, now.batch, now.replicas)


def held_gpus(fleet: Fleet) -> IntArray:
    """GPUs of each type that servers without any option hold, shape (T,).

    Such a server is left out of the answer and keeps what it runs, so its GPUs are not there to give away.
    """
    running = _Running.of(fleet)
    keeps = fleet.needing & ~fleet.has_option
    held = np.zeros(len(fleet.gpu_types), dtype=np.int64)
    mine = (running.candidate >= 0) & keeps[running.server]
    k = running.candidate[mine]
    np.add.at(held, fleet.gpu_type[k], running.replicas[mine] * fleet.gpus[k])
    return held


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
    k, replicas = fleet.options[used], plan.replicas[used]
    carried = carried_rps(problem, plan)[used]
    metrics = metrics_at(fleet, k, carried / replicas)
    parts = [
        _Part(*figures)
        for figures in zip(
            [fleet.accelerators[a] for a in fleet.accelerator[k].tolist()],
            replicas.tolist(),
            fleet.candidates.max_batch[k].tolist(),
            (replicas * fleet.cost_per_h[k]).tolist(),
            (metrics.itl_s * MS_PER_S).tolist(),
            (metrics.ttft_s * MS_PER_S).tolist(),
            (carried * S_PER_MIN).tolist(),
            strict=True,
        )
    ]
    # Options are sorted by server, so each one's parts stand together.
    first = np.searchsorted(fleet.server[k], np.arange(len(fleet.wire) + 1)).tolist()
    decided = np.flatnonzero(fleet.has_option | ~fleet.needing).tolist()
    return _ALLOCATIONS.validate_python(
        {fleet.wire[s].name: _allocation(fleet.wire[s], parts[first[s] : first[s + 1]]) for s in decided}
    )


class _Part(NamedTuple):
    """Replicas of a server on one accelerator, in the units of the wire."""

    accelerator: str
    num_replicas: int
    max_batch: int
    cost_cents_per_h: float
    itl_average_ms: float
    ttft_average_ms: float
    arrival_rate_rpm: float


def _allocation(server: schema.Server, parts: Sequence[_Part]) -> dict[str, Any]:
    """Join the parts of one server; of a mix the accelerator that carries the most load stands at the top."""
    if len(parts) == 1:
        return _whole(server, parts[0])
    if not parts:
        return _whole(server, _Part("", 0, 0, 0.0, 0.0, 0.0, 0.0)) | {"wait_average_ms": None}
    main = max(parts, key=lambda part: part.arrival_rate_rpm)
    carried_rpm = sum(part.arrival_rate_rpm for part in parts)

    def mean(values: list[float]) -> float:
        if carried_rpm == 0:
            return values[parts.index(main)]
        return sum(v * part.arrival_rate_rpm for v, part in zip(values, parts, strict=True)) / carried_rpm

    joined = main._replace(
        num_replicas=sum(part.num_replicas for part in parts),
        cost_cents_per_h=sum(part.cost_cents_per_h for part in parts),
        itl_average_ms=mean([part.itl_average_ms for part in parts]),
        ttft_average_ms=mean([part.ttft_average_ms for part in parts]),
        arrival_rate_rpm=carried_rpm,
    )
    return _whole(server, joined) | {"parts": [_on_wire(server, part) for part in parts]}


def _whole(server: schema.Server, part: _Part) -> dict[str, Any]:
    """Fields of an allocation, by name."""
    load = server.current_alloc.load
    fields = part._asdict()
    fields["load"] = _carried(load, fields.pop("arrival_rate_rpm"))
    if load.avg_length is not None:
        fields["wait_average_ms"] = part.ttft_average_ms
    return fields


def _on_wire(server: schema.Server, part: _Part) -> schema.AllocPart:
    """Write one part, without validation: a latency that is not known is NaN, written as null."""
    fields = part._asdict()
    load = _carried(server.current_alloc.load, fields.pop("arrival_rate_rpm"))
    return schema.AllocPart.model_construct(**fields, load=load)


def _carried(load: schema.Load, rate_rpm: float) -> schema.Load:
    """Return the load as the input gave it, at this rate."""
    given_rpm = load.arrival_rate_rpm
    if abs(rate_rpm - given_rpm) <= _SAME_RATE * given_rpm:
        return load
    return load.model_copy(update={"arrival_rate_rpm": rate_rpm})

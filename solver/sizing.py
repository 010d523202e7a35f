"""Every candidate of a system: a server on an accelerator at a batch limit, and what one replica carries.

::

    servers  -> _Asked      what each one asks for: tokens, rate, targets, limits
    profiles -> Profiles    what each (model, accelerator, batch limit) can do
    both     -> Candidates  one row for each pair -> Curves -> Sizing -> Fleet
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from models import capacity, moments
from models.capacity import Metrics, Sizing, unloaded
from models.laws import Candidates
from models.memory import largest_batch
from solver import schema
from solver.curves import Curves
from solver.headroom import with_headroom
from solver.profiles import MEASURED, read_profiles
from solver.units import MS_PER_S, S_PER_MIN

if TYPE_CHECKING:
    from collections.abc import Callable

    from solver.milp import BoolArray, FloatArray, IntArray
    from solver.profiles import Profiles

# Queue places per batch place where `maxQueueSize` is absent, by law number; the reference's values.
_QUEUE_PER_BATCH = np.array([0, 9, 10, 10])

_NO_ROWS = np.empty(0, dtype=np.int64)
_NO_TARGET = schema.ModelTarget(model="(none)")


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
    def pair(self) -> IntArray:
        """Server and accelerator of each candidate as one rising number, shape (K,)."""
        return self.server * max(len(self.accelerators), 1) + self.accelerator

    def first_candidate(self, server: IntArray, accelerator: IntArray) -> IntArray:
        """First candidates of servers on accelerators, shapes (n,); -1 where there is no profile."""
        pair = server * max(len(self.accelerators), 1) + accelerator
        k = np.searchsorted(self.pair, pair)
        found = np.append(self.pair, -1)[k] == pair
        return np.where(found, k, -1)

    @cached_property
    def needing(self) -> BoolArray:
        """Servers with load or a minimum of replicas, shape (S,)."""
        result: BoolArray = self.loaded | np.array([s.least_replicas > 0 for s in self.wire], dtype=bool)
        return result

    @cached_property
    def options(self) -> IntArray:
        """Candidates that are options of the program, rising indices."""
        able = self.fits & (self.capacity_rps > 0)
        return np.flatnonzero(self.allowed & able & self.needing[self.server])

    @cached_property
    def has_option(self) -> BoolArray:
        """Servers that an option can serve, shape (S,)."""
        found = np.zeros(len(self.wire), dtype=bool)
        found[self.server[self.options]] = True
        return found


@dataclass(frozen=True)
class _Asked:
    """What the servers ask for, every array of shape (S,).

    Attributes
    ----------
    length, in_tokens, out_tokens : float
        Tokens of a request: of law 1, and of the others; 0 = not known.
    rate_rps, tokens_per_s : float
        What arrives; the throughput target, which is the demand where it is not 0.
    itl_s, wait_s, ttft_s : float
        Targets, the second for law 1, the third for the others; 0 = none.
    percentile : float
        NaN = the mean meets the target.
    max_batch : int
        0 = that of the profile.
    max_queue : int
        -1 = by the batch limit.
    in_cov, out_cov, arrival_burstiness, wait_factor : float
        As in `models.moments.Detail` and `models.laws.Candidates`.
    """

    length: FloatArray
    in_tokens: FloatArray
    out_tokens: FloatArray
    rate_rps: FloatArray
    tokens_per_s: FloatArray
    itl_s: FloatArray
    wait_s: FloatArray
    ttft_s: FloatArray
    percentile: FloatArray
    max_batch: IntArray
    max_queue: IntArray
    in_cov: FloatArray
    out_cov: FloatArray
    arrival_burstiness: FloatArray
    wait_factor: FloatArray

    @classmethod
    def by(cls, system: schema.System, wire: tuple[schema.Server, ...]) -> _Asked:
        """Read the servers `wire` of a system."""
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
        burstiness, wait_factor = _burstiness(load, asked=optimizer.burstiness)
        return cls(
            length=length,
            in_tokens=in_tokens,
            out_tokens=out_tokens,
            rate_rps=np.array([x.arrival_rate_rpm for x in load], dtype=np.float64) / S_PER_MIN,
            tokens_per_s=np.array([t.slo_tps for t in target]),
            itl_s=np.array([t.slo_itl_ms for t in target]) / MS_PER_S,
            wait_s=np.array([t.slo_ttw_ms or t.slo_ttft_ms for t in target]) / MS_PER_S,
            ttft_s=np.array([t.slo_ttft_ms or t.slo_ttw_ms for t in target]) / MS_PER_S,
            # None becomes NaN.
            percentile=np.array(
                [optimizer.slo_percentile if t.slo_percentile is None else t.slo_percentile for t in target],
                dtype=np.float64,
            ),
            max_batch=np.array([s.max_batch_size for s in wire], dtype=np.int64),
            max_queue=np.array(
                [-1 if s.max_queue_size is None else s.max_queue_size for s in wire], dtype=np.int64
            ),
            in_cov=np.array([x.in_tokens_cov or 0.0 for x in load]),
            out_cov=np.array([x.out_tokens_cov or 0.0 for x in load]),
            arrival_burstiness=burstiness,
            wait_factor=wait_factor,
        )


@dataclass(frozen=True)
class _Pairs:
    """Servers with the profiles of their models, sorted by (server, accelerator, batch limit), shape (K,).

    Attributes
    ----------
    row : int
        Of the profiles.
    server : int
    tokens, request_tokens : float
        Output tokens of a request, and all its tokens, as the law of the profile counts them.
    batch : int
        Batch limit N, >= 1.
    memory_limited, fits : bool
        As in `Fleet`.
    """

    row: IntArray
    server: IntArray
    tokens: FloatArray
    request_tokens: FloatArray
    batch: IntArray
    memory_limited: BoolArray
    fits: BoolArray

    @classmethod
    def of(
        cls, wire: tuple[schema.Server, ...], asked: _Asked, profiles: Profiles, rows: dict[str, IntArray]
    ) -> _Pairs:
        """Pair each server with the rows of its model."""
        lists = [rows.get(s.model, _NO_ROWS) for s in wire]
        row = np.concatenate([*lists, _NO_ROWS])
        server = np.repeat(np.arange(len(wire)), [len(x) for x in lists])
        first_law = profiles.law[row] == 1
        tokens = np.where(first_law, asked.length[server], asked.out_tokens[server])
        request_tokens = np.where(
            first_law, asked.length[server], (asked.in_tokens + asked.out_tokens)[server]
        )
        wanted = _batch_limits(profiles, row, tokens, asked.max_batch[server])
        held = largest_batch(
            profiles.memory_bytes[row],
            profiles.weight_bytes[row],
            profiles.kv_bytes_per_token[row],
            request_tokens,
        )
        batch = np.minimum(wanted, np.maximum(held, 1))
        pairs = cls(row, server, tokens, request_tokens, batch, held < wanted, held > 0)
        # Batch limits of one pair that were cut to the same limit are one candidate.
        again = np.arange(len(row)) > 0
        for column in (server, profiles.accelerator[row], batch):
            again[1:] &= column[1:] == column[:-1]
        return pairs.take(~again) if again.any() else pairs

    def take(self, mask: BoolArray) -> _Pairs:
        """Return the pairs of a mask."""
        return _Pairs(**{field.name: getattr(self, field.name)[mask] for field in fields(self)})


def size_fleet(system: schema.System, curves: Curves | None = None) -> Fleet:
    """Size every candidate of a valid system; `curves` remembers sizings between calls."""
    wire = tuple(sorted(system.server_data.servers, key=lambda s: s.name))
    accelerators = tuple(sorted(a.name for a in system.accelerator_data.accelerators))
    gpu_types = _gpu_types(system)
    profiles, rows = read_profiles(system, accelerators, gpu_types)
    asked = _Asked.by(system, wire)
    pairs = _Pairs.of(wire, asked, profiles, rows)
    row, server = pairs.row, pairs.server
    law = profiles.law[row]

    # A measured capacity needs no tokens to be a capacity.
    measured = np.zeros(len(wire), dtype=bool)
    measured[server[law == MEASURED]] = True
    loaded = (asked.rate_rps > 0) & ((asked.out_tokens > 0) | (asked.length > 0) | measured)
    demand_tokens = np.where(asked.out_tokens > 0, asked.out_tokens, 1.0)
    mean_rps = np.where(asked.tokens_per_s > 0, asked.tokens_per_s / demand_tokens, asked.rate_rps) * loaded

    candidates, detail = _candidates(asked, profiles, pairs)
    by_moments = (law == 3) & profiles.by_moments[row]
    able = (law != MEASURED) & loaded[server] & (pairs.tokens > 0)
    sizing = _sized(candidates, detail, by_moments, able, curves or Curves())
    capacity_rps = np.where(law == MEASURED, profiles.rate_rps[row], sizing.capacity_rps)
    return Fleet(
        wire=wire,
        accelerators=accelerators,
        gpu_types=gpu_types,
        server=server,
        accelerator=profiles.accelerator[row],
        law=law,
        loaded=loaded,
        arrival_rps=with_headroom(system, wire, mean_rps),
        candidates=candidates,
        detail=detail,
        by_moments=by_moments,
        sizing=sizing,
        capacity_rps=np.where(loaded[server], capacity_rps, np.inf),
        memory_limited=pairs.memory_limited,
        fits=pairs.fits,
        allowed=_allowed(wire, accelerators, server, profiles.accelerator[row]),
        gpu_type=profiles.gpu_type[row],
        gpus=profiles.gpus[row],
        cost_per_h=profiles.cost_per_h[row],
    )


def _gpu_types(system: schema.System) -> tuple[str, ...]:
    names = {a.type for a in system.accelerator_data.accelerators}
    names |= {c.type for c in system.capacity_data.count} | {n.type for n in system.capacity_data.nodes}
    return tuple(sorted(names))


def _candidates(asked: _Asked, profiles: Profiles, pairs: _Pairs) -> tuple[Candidates, moments.Detail]:
    """Write the pairs as the models take them."""
    row, server, batch = pairs.row, pairs.server, pairs.batch
    law = profiles.law[row]
    first_law, queue = law == 1, asked.max_queue[server]
    candidates = Candidates(
        law=np.where(law == MEASURED, 1, law),
        alpha_s=profiles.alpha_s[row],
        beta_s=profiles.beta_s[row],
        gamma_s=profiles.gamma_s[row],
        delta_s=profiles.delta_s[row],
        beta_prefill_s=profiles.beta_prefill_s[row],
        prefill_floor_s=profiles.prefill_floor_s[row],
        epsilon_s=profiles.epsilon_s[row],
        expert_fraction=profiles.expert_fraction[row],
        in_tokens=np.where(first_law, 0.0, asked.in_tokens[server]),
        out_tokens=pairs.tokens,
        max_batch=batch,
        max_queue=np.where(queue >= 0, queue, _QUEUE_PER_BATCH[law] * batch),
        target_itl_s=asked.itl_s[server],
        target_ttft_s=np.where(first_law, asked.wait_s[server], asked.ttft_s[server]),
        throughput_target=asked.tokens_per_s[server] > 0,
        percentile=asked.percentile[server],
        wait_factor=asked.wait_factor[server],
    )
    detail = moments.Detail(
        in_cov=asked.in_cov[server],
        out_cov=asked.out_cov[server],
        arrival_burstiness=asked.arrival_burstiness[server],
        overhead_s=profiles.overhead_s[row],
    )
    return candidates, detail


def _sized(
    candidates: Candidates, detail: moments.Detail, by_moments: BoolArray, able: BoolArray, curves: Curves
) -> Sizing:
    """Size the candidates in `able`; for the others no capacity, latencies not known."""
    if able.all():
        return curves.size(candidates, detail, by_moments)
    zeros, unknown = np.zeros(len(able)), np.full(len(able), np.nan)
    sizing = Sizing(zeros, zeros.copy(), np.zeros(len(able), dtype=np.int64), unknown, unknown.copy())
    _put(sizing, able, lambda i: curves.size(candidates.take(i), detail.take(i), by_moments[i]))
    return sizing


def _batch_limits(profiles: Profiles, row: IntArray, tokens: FloatArray, server_limit: IntArray) -> IntArray:
    """Batch limit N of each candidate, >= 1.

    The server's limit if given, else floor(profile maxBatchSize x atTokens / tokens); without atTokens (or
    without tokens) the profile's maxBatchSize as it is. A limit of `batchSizes` above that is cut to it.
    """
    scaled = (profiles.at_tokens[row] > 0) & (tokens > 0)
    limit = profiles.max_batch[row].astype(np.float64)
    limit[scaled] *= profiles.at_tokens[row][scaled] / tokens[scaled]
    # The tolerance keeps an exact quotient from falling to the integer below.
    natural = np.maximum(np.floor(limit * (1 + 1e-12)), 1).astype(np.int64)
    natural = np.where(server_limit > 0, server_limit, natural)
    wanted = profiles.batch[row]
    return np.where(wanted > 0, np.minimum(wanted, natural), natural)


def _burstiness(load: list[schema.Load], *, asked: bool) -> tuple[FloatArray, FloatArray]:
    """Ca^2 and (Ca^2 + Cs^2) / 2 where asked for, else 1; a coefficient of 0 or absent counts as 1."""
    if not asked:
        return np.ones(len(load)), np.ones(len(load))
    arrival = np.array([x.arrival_cov or 1.0 for x in load]) ** 2
    service = np.array([x.service_cov or 1.0 for x in load]) ** 2
    return arrival, (arrival + service) / 2.0


def _allowed(
    wire: tuple[schema.Server, ...], accelerators: tuple[str, ...], server: IntArray, accelerator: IntArray
) -> BoolArray:
    """False where a server keeps its accelerator and the candidate is another one."""
    index = {name: i for i, name in enumerate(accelerators)}
    kept = np.array([index.get(s.current_alloc.accelerator, -1) if s.keep_accelerator else -1 for s in wire])
    result: BoolArray = (kept[server] < 0) | (kept[server] == accelerator)
    return result


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


def _put(whole: Sizing | Metrics, mask: BoolArray, part_of: Callable[[IntArray], Sizing | Metrics]) -> None:
    """Write the figures of the candidates in `mask` into `whole`."""
    index = np.flatnonzero(mask)
    if not index.size:
        return
    part = part_of(index)
    for field in fields(whole):
        getattr(whole, field.name)[index] = getattr(part, field.name)

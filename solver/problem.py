"""The allocation problem and a plan for it, in SI units, as columns of arrays.

Names: S servers, J options (columns of the program: a server on an accelerator at a batch limit),
T GPU types, A accelerators. Everything is sorted by name, so equal systems give equal problems.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from solver.milp import BoolArray, FloatArray, IntArray

# A demand counts as met at this relative distance below it. It absorbs the rounding of
# demand / capacity (40 / 0.4 is 100 replicas, not 101), nothing more.
DEMAND_TOLERANCE = 1e-9

# How far a later level may worsen an earlier one: the feasibility tolerance of the solvers.
HOLD_TOLERANCE = 1e-6

NO_LIMIT = np.iinfo(np.int64).max


class SaturationPolicy(StrEnum):
    """What shares of a demand may be served when GPUs run short (the reference's names)."""

    NONE = "None"
    PRIORITY_EXHAUSTIVE = "PriorityExhaustive"
    PRIORITY_ROUND_ROBIN = "PriorityRoundRobin"
    ROUND_ROBIN = "RoundRobin"


@dataclass(frozen=True)
class Policy:
    """The rules of the program that are not data.

    Attributes
    ----------
    max_types : int or None
        Most accelerators a server may mix; 1 = one type (the default), None = any number.
    saturation : SaturationPolicy
    delayed_best_effort : bool
        Partial service only after every class has had its full service.
    switching_factor : float
        The penalty of leaving accelerators, as a share of the cost left and taken up; >= 0.
    """

    max_types: int | None = 1
    saturation: SaturationPolicy = SaturationPolicy.NONE
    delayed_best_effort: bool = False
    switching_factor: float = 0.1

    @property
    def partial(self) -> bool:
        """Whether a share between 0 and 1 of a demand may be served."""
        return self.saturation is not SaturationPolicy.NONE


@dataclass(frozen=True)
class Inventory:
    """The GPUs that exist.

    Attributes
    ----------
    gpus : (T,) int
        Cards of each type; `NO_LIMIT` where unlimited.
    nodes : tuple of T (tuple of int, or None)
        Free cards node by node of each type, where nodes are known: a replica of k cards needs one node
        with k free cards. None where the type is one pool.
    """

    gpus: IntArray
    nodes: tuple[tuple[int, ...] | None, ...]

    @property
    def is_pool(self) -> BoolArray:
        """Types that are not known node by node, shape (T,)."""
        return np.array([nodes is None for nodes in self.nodes], dtype=bool)


@dataclass(frozen=True)
class ReplicaLimit:
    """Limits of the replicas of one server on one accelerator.

    Attributes
    ----------
    server, accelerator : int
    least : int
        Replicas that run in every plan, whatever the demand; the inventory holds those of all limits.
    most : int
        `NO_LIMIT` where there is no maximum.
    """

    server: int
    accelerator: int
    least: int = 0
    most: int = NO_LIMIT


@dataclass(frozen=True)
class AllocationProblem:
    """What to decide.

    A server that needs nothing (no load, no minimum) has no option.

    Attributes
    ----------
    servers, accelerators, gpu_types : tuple of str
        Names, each sorted.
    arrival_rps : (S,) float
        Demand; 0 = no load.
    min_replicas, max_replicas : (S,) int
        `NO_LIMIT` where there is no maximum.
    priority : (S,) int
        1 = most important.
    weight : (S,) float
        Weight of a server's unserved share within its class, > 0.
    option_server, option_accelerator, option_batch : (J,) int
        Server index, accelerator index, batch limit; options are sorted by (server, accelerator, batch).
    capacity_rps : (J,) float
        Largest arrival rate of one replica that meets every target, > 0; inf for a server without load.
    gpu_type, gpus : (J,) int
        GPU type index and cards of one replica.
    cost_per_h : (J,) float
        Cost of one replica, >= 0, in the input's money unit per hour.
    current_server, current_accelerator : (C,) int
        What runs now: one row for each accelerator a server runs on.
    current_cost_per_h : (C,) float
        What it costs now.
    inventory : Inventory
    policy : Policy
    limits : tuple of ReplicaLimit
        At most one for each (server, accelerator), each with an option.
    own_max_types : tuple of (int, int)
        Servers with a maximum of accelerators of their own, which holds beside the policy's: (server, most).
    """

    servers: tuple[str, ...]
    accelerators: tuple[str, ...]
    gpu_types: tuple[str, ...]
    arrival_rps: FloatArray
    min_replicas: IntArray
    max_replicas: IntArray
    priority: IntArray
    weight: FloatArray
    option_server: IntArray
    option_accelerator: IntArray
    option_batch: IntArray
    capacity_rps: FloatArray
    gpu_type: IntArray
    gpus: IntArray
    cost_per_h: FloatArray
    current_server: IntArray
    current_accelerator: IntArray
    current_cost_per_h: FloatArray
    inventory: Inventory
    policy: Policy
    limits: tuple[ReplicaLimit, ...] = ()
    own_max_types: tuple[tuple[int, int], ...] = ()

    @cached_property
    def max_types(self) -> IntArray:
        """Most accelerators that each server may use, `NO_LIMIT` where any number, shape (S,)."""
        shared = NO_LIMIT if self.policy.max_types is None else self.policy.max_types
        result = np.full(len(self.servers), shared, dtype=np.int64)
        for server, most in self.own_max_types:
            result[server] = min(shared, most)
        return result

    @cached_property
    def least(self) -> IntArray:
        """Replicas that run anyway on the accelerator of each option, shape (J,)."""
        result = np.zeros(len(self.option_server), dtype=np.int64)
        for limit in self.limits:
            result[self._options_under(limit)] = limit.least
        return result

    @cached_property
    def most(self) -> IntArray:
        """Most replicas on the accelerator of each option, the server's maximum included, shape (J,)."""
        result = self.max_replicas[self.option_server].copy()
        for limit in self.limits:
            mine = self._options_under(limit)
            result[mine] = np.minimum(result[mine], limit.most)
        return result

    def _options_under(self, limit: ReplicaLimit) -> BoolArray:
        result: BoolArray = (self.option_server == limit.server) & (
            self.option_accelerator == limit.accelerator
        )
        return result

    @cached_property
    def replicas_needed(self) -> IntArray:
        """Replicas of each option that serve its server's whole demand alone, shape (J,)."""
        with np.errstate(invalid="ignore"):
            share = self.arrival_rps[self.option_server] / self.capacity_rps
        for_load = np.ceil(share * (1.0 - DEMAND_TOLERANCE)).astype(np.int64)
        return np.maximum(np.maximum(for_load, self.min_replicas[self.option_server]), self.least)

    @cached_property
    def option_is_current(self) -> BoolArray:
        """Whether the option's server runs on the option's accelerator now, shape (J,)."""
        width = max(len(self.accelerators), 1)
        mine = self.option_server * width + self.option_accelerator
        result: BoolArray = np.isin(mine, self.current_server * width + self.current_accelerator)
        return result

    @cached_property
    def option_is_new(self) -> BoolArray:
        """Whether the option's server runs now, and not on the option's accelerator, shape (J,)."""
        runs = np.zeros(len(self.servers), dtype=bool)
        runs[self.current_server] = True
        result: BoolArray = runs[self.option_server] & ~self.option_is_current
        return result

    def per_server(self, values: FloatArray | IntArray) -> FloatArray:
        """Sum values of options, shape (J,), by server, shape (S,)."""
        sums = np.bincount(self.option_server, values, minlength=len(self.servers))
        return sums.astype(np.float64)

    def cards(self, plan: Plan) -> IntArray:
        """GPUs of each type that a plan uses, shape (T,)."""
        sums = np.bincount(self.gpu_type, self.gpus * plan.replicas, minlength=len(self.gpu_types))
        return sums.astype(np.int64)

    @cached_property
    def needs_nothing(self) -> BoolArray:
        """Servers without load and without a minimum: served by nothing at all, shape (S,)."""
        result: BoolArray = (self.arrival_rps == 0) & (self.min_replicas == 0)
        return result

    @cached_property
    def levels(self) -> tuple[Level, ...]:
        """The lexicographic objective, most important level first, cost last.

        Servers that no option can serve are in no level: no decision changes their share.
        """
        has_option = np.zeros(len(self.servers), dtype=bool)
        has_option[self.option_server] = True
        demanding = has_option & ~self.needs_nothing
        by_class = [(f"priority {p}", demanding & (self.priority == p)) for p in self.classes]
        saturation = self.policy.saturation

        result: list[Level] = []
        if self.policy.partial and self.policy.delayed_best_effort:
            result += [Level(LevelKind.UNMET, mask, name) for name, mask in by_class]
        if saturation is SaturationPolicy.ROUND_ROBIN:
            result += [
                Level(kind, demanding, "all classes") for kind in (LevelKind.WORST_SHARE, LevelKind.UNSERVED)
            ]
        else:
            kinds = [LevelKind.UNSERVED]
            if saturation is SaturationPolicy.PRIORITY_ROUND_ROBIN:
                kinds.insert(0, LevelKind.WORST_SHARE)
            result += [Level(kind, mask, name) for name, mask in by_class for kind in kinds]
        result = [level for level in result if level.servers.any()]
        return (*result, Level(LevelKind.COST, np.ones(len(self.servers), dtype=bool), "cost"))

    @cached_property
    def classes(self) -> tuple[int, ...]:
        """The priorities that occur, most important first."""
        return tuple(int(p) for p in np.unique(self.priority))


@dataclass(frozen=True)
class Plan:
    """Replicas of each option, shape (J,) int."""

    replicas: IntArray


class LevelKind(StrEnum):
    """What one level of the lexicographic objective minimises."""

    UNMET = "unmet"  # weighted number of servers not fully served
    WORST_SHARE = "worst unserved share"  # largest unserved share of a server
    UNSERVED = "unserved share"  # weighted sum of unserved shares
    COST = "cost"  # cost per hour plus switching penalty


@dataclass(frozen=True)
class Level:
    """One level of the objective: `kind` over the servers of the mask, shape (S,) bool."""

    kind: LevelKind
    servers: BoolArray
    name: str

"""The mathematical program: `AllocationProblem` to `Milp` and a point back to a `Plan`.

`docs/formulation.md` states the program with the names used here; each row family is one function
whose docstring is its line there. Two shapes of the same program:

whole
    One type per server and all-or-nothing service. Column ``y[j]`` is 1 when server s(j) runs on option j
    with the replicas r[j] that serve it fully. Its relaxation is much tighter than that of ``integer``.
integer
    Column ``n[j]`` counts replicas: mixes of types, and partial service under scarcity.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np

from solver.check import cost_alone_per_h
from solver.milp import Milp
from solver.packing import is_chain, patterns
from solver.problem import DEMAND_TOLERANCE, NO_LIMIT, Level, LevelKind, Plan

if TYPE_CHECKING:
    from solver.milp import BoolArray, FloatArray, IntArray
    from solver.problem import AllocationProblem

    # Row within a block, column and value of each entry.
    _Entries = tuple[IntArray, IntArray, FloatArray | float]


@dataclass(frozen=True)
class Objective:
    """One level of the lexicographic objective over the columns of a `Milp`.

    Attributes
    ----------
    level : Level
    cost : (n,) float
    offset : float
        Constant of the level's value.
    shift : float
        Subtracted from the value in `program`, so that a relative gap is relative to what is served, not to
        the little that is not: the weight of everything for a service level, 0 for the cost.
    """

    level: Level
    cost: FloatArray
    offset: float
    shift: float


@dataclass(frozen=True)
class Formulation:
    """A program and what its columns and rows mean.

    Attributes
    ----------
    milp : Milp
        With a zero objective; see `program`.
    objectives : tuple of Objective
        Most important first, cost last.
    option_column : (J,) int
        Column of ``n[j]`` or ``y[j]``.
    replicas_per_unit : (J,) int
        Replicas that a value of 1 in the option's column stands for.
    unserved_column : (S,) int
        Column of ``u[s]``, -1 for servers without an option.
    left_column : (C,) int
        Column of ``left[s, a]`` for each row of what runs now; -1 where the program has none.
    inventory_row : (T,) int
        Row of each GPU type, -1 where the type is unlimited.
    single_card_row : (T,) int
        Row of replicas of one card or more on this type's nodes, -1 where there is none.
    """

    milp: Milp
    objectives: tuple[Objective, ...]
    option_column: IntArray
    replicas_per_unit: IntArray
    unserved_column: IntArray
    left_column: IntArray
    inventory_row: IntArray
    single_card_row: IntArray

    def read_plan(self, x: FloatArray) -> Plan:
        """Plan of a point, shape (n,)."""
        units = np.rint(x[self.option_column]).astype(np.int64)
        return Plan(units * self.replicas_per_unit)

    def point(self, plan: Plan) -> FloatArray:
        """Return a start for a solver: the option columns of `plan`, NaN elsewhere, shape (n,)."""
        x = np.full(self.milp.columns, np.nan)
        x[self.option_column] = plan.replicas // self.replicas_per_unit
        return x


def program(formulation: Formulation, index: int, limits: tuple[float, ...] = ()) -> Milp:
    """Return the program of level `index`, with the levels before it held at `limits`.

    Parameters
    ----------
    formulation : Formulation
    index : int
        Position in `formulation.objectives`.
    limits : tuple of float
        Largest allowed value of each earlier level.
    """
    milp = formulation.milp
    held = [(o, limit) for o, limit in zip(formulation.objectives, limits, strict=False) if o.cost.any()]
    columns = [np.flatnonzero(o.cost) for o, _ in held]
    objective = formulation.objectives[index]
    names = tuple(f"hold {o.level.kind} {o.level.name}" for o, _ in held) if milp.row_names else ()
    return replace(
        milp,
        objective=objective.cost,
        offset=objective.offset - objective.shift,
        row_start=np.r_[
            milp.row_start, milp.row_start[-1] + np.cumsum([len(c) for c in columns], dtype=np.int64)
        ].astype(np.int64),
        column=np.concatenate([milp.column, *columns]).astype(np.int64),
        value=np.concatenate([milp.value, *[o.cost[c] for (o, _), c in zip(held, columns, strict=True)]]),
        row_lower=np.r_[milp.row_lower, np.full(len(held), -np.inf)],
        row_upper=np.r_[milp.row_upper, np.array([limit - o.offset for o, limit in held])],
        row_names=(*milp.row_names, *names),
    )


@dataclass
class _Builder:
    """Columns and rows gathered block by block; `build` sorts the entries into rows."""

    lower: list[FloatArray] = field(default_factory=list)
    upper: list[FloatArray] = field(default_factory=list)
    integer: list[BoolArray] = field(default_factory=list)
    entry_row: list[IntArray] = field(default_factory=list)
    entry_column: list[IntArray] = field(default_factory=list)
    entry_value: list[FloatArray] = field(default_factory=list)
    row_lower: list[FloatArray] = field(default_factory=list)
    row_upper: list[FloatArray] = field(default_factory=list)
    column_names: list[str] = field(default_factory=list)
    row_names: list[str] = field(default_factory=list)
    columns: int = 0
    rows: int = 0

    def add_columns(
        self,
        lower: float | IntArray,
        upper: FloatArray | IntArray,
        *,
        integer: bool,
        names: tuple[str, ...] = (),
    ) -> IntArray:
        """Add one column for each entry of `upper`; return their indices."""
        count = len(upper)
        first = self.columns
        self.lower.append(np.full(count, lower, dtype=np.float64))
        self.upper.append(np.asarray(upper, dtype=np.float64))
        self.integer.append(np.full(count, integer))
        self.column_names += names
        self.columns += count
        return np.arange(first, self.columns)

    def add_rows(
        self,
        entries: list[_Entries],
        lower: FloatArray | float,
        upper: FloatArray | float,
        count: int,
        names: tuple[str, ...] = (),
    ) -> IntArray:
        """Add `count` rows; entries are (row within the block, column, value). Return the row indices."""
        first = self.rows
        for row, column, value in entries:
            self.entry_row.append(np.asarray(row, dtype=np.int64) + first)
            self.entry_column.append(np.asarray(column, dtype=np.int64))
            self.entry_value.append(np.broadcast_to(np.asarray(value, dtype=np.float64), np.shape(row)))
        self.row_lower.append(np.broadcast_to(np.asarray(lower, dtype=np.float64), (count,)))
        self.row_upper.append(np.broadcast_to(np.asarray(upper, dtype=np.float64), (count,)))
        self.row_names += names
        self.rows += count
        return np.arange(first, self.rows)

    def build(self) -> Milp:
        def joined(parts: list[FloatArray] | list[IntArray] | list[BoolArray], dtype: type) -> np.ndarray:
            return np.concatenate(parts).astype(dtype) if parts else np.empty(0, dtype=dtype)

        row = joined(self.entry_row, np.int64)
        order = np.argsort(row, kind="stable")
        counts = np.bincount(row, minlength=self.rows)
        return Milp(
            objective=np.zeros(self.columns),
            row_start=np.r_[0, np.cumsum(counts)].astype(np.int64),
            column=joined(self.entry_column, np.int64)[order],
            value=joined(self.entry_value, np.float64)[order],
            row_lower=joined(self.row_lower, np.float64),
            row_upper=joined(self.row_upper, np.float64),
            column_lower=joined(self.lower, np.float64),
            column_upper=joined(self.upper, np.float64),
            integer=joined(self.integer, np.bool_),
            column_names=tuple(self.column_names),
            row_names=tuple(self.row_names),
        )


@dataclass(frozen=True)
class _Frame:
    """The columns every row family refers to. Servers are those that have an option, renumbered."""

    problem: AllocationProblem
    servers: IntArray  # server index of each kept server
    server_of_option: IntArray  # (J,) position in `servers`
    option_column: IntArray  # (J,)
    per_unit: IntArray  # (J,) replicas a unit of the column stands for
    upper: IntArray  # (J,) most units
    unserved: IntArray  # column u[s] of each kept server
    named: bool

    def names(self, stem: str, servers: IntArray) -> tuple[str, ...]:
        """Row or column names for these server indices, empty when names are off."""
        return tuple(f"{stem}[{self.problem.servers[s]}]" for s in servers) if self.named else ()


def is_whole(problem: AllocationProblem, *, serve_all: bool) -> bool:
    """Whether the program of this problem has the whole shape."""
    policy = problem.policy
    return policy.max_types == 1 and (serve_all or not policy.partial) and not problem.limits


def formulate(problem: AllocationProblem, *, serve_all: bool, names: bool = False) -> Formulation:
    """Write the program of `problem`.

    Parameters
    ----------
    problem : AllocationProblem
        At most one option for each (server, accelerator): see `reduce.dominated`.
    serve_all : bool
        Fix every unserved share at zero; the program is then infeasible under scarcity.
    names : bool
        Name columns and rows, for a model file.
    """
    policy = problem.policy
    whole = is_whole(problem, serve_all=serve_all)
    builder = _Builder()
    frame = _columns(builder, problem, whole=whole, serve_all=serve_all, names=names)
    if whole:
        _assignment_rows(builder, frame)
    else:
        _demand_rows(builder, frame)
        _minimum_rows(builder, frame)
        _maximum_rows(builder, frame)
        _type_limit_rows(builder, frame)
        if not policy.partial and not serve_all:
            _all_or_nothing_rows(builder, frame)
    inventory_row = _inventory_rows(builder, frame)
    single_card_row = _node_rows(builder, frame)
    *services, last = problem.levels
    objectives = [_service_objective(builder, frame, level) for level in services]
    cost, left_column = _cost_objective(builder, frame, last, whole=whole)
    objectives.append(cost)
    unserved_column = np.full(len(problem.servers), -1, dtype=np.int64)
    unserved_column[frame.servers] = frame.unserved
    milp = builder.build()
    return Formulation(
        milp=milp,
        objectives=tuple(
            replace(o, cost=np.r_[o.cost, np.zeros(milp.columns - len(o.cost))]) for o in objectives
        ),
        option_column=frame.option_column,
        replicas_per_unit=frame.per_unit,
        unserved_column=unserved_column,
        left_column=left_column,
        inventory_row=inventory_row,
        single_card_row=single_card_row,
    )


def _columns(
    builder: _Builder, problem: AllocationProblem, *, whole: bool, serve_all: bool, names: bool
) -> _Frame:
    """Add ``n[j]`` in 0..bound, or ``y[j]`` in {0, 1}; ``u[s]`` in [0, 1]: unserved share.

    The bound of ``n[j]`` is the smallest of: replicas that serve the server alone, the maximum on the
    accelerator, and what the inventory holds. ``n[j]`` is at least what runs there anyway.
    """
    needed = problem.replicas_needed
    maximum = problem.most
    stock = problem.inventory.gpus[problem.gpu_type]
    most = np.minimum(np.minimum(needed, maximum), np.where(stock == NO_LIMIT, needed, stock // problem.gpus))
    per_unit = needed if whole else np.ones_like(needed)
    upper = (most >= needed).astype(np.int64) if whole else most
    servers, server_of_option = np.unique(problem.option_server, return_inverse=True)
    option_names: tuple[str, ...] = ()
    if names:
        option_names = tuple(
            f"{'y' if whole else 'n'}[{problem.servers[s]},{problem.accelerators[a]},{b}]"
            for s, a, b in zip(
                problem.option_server, problem.option_accelerator, problem.option_batch, strict=True
            )
        )
    options = builder.add_columns(problem.least, upper, integer=True, names=option_names)
    share = np.full(len(servers), 0.0 if serve_all else 1.0)
    # With whole columns y, u = 1 - sum y is integral by itself.
    binary = not whole and not problem.policy.partial and not serve_all
    unserved = builder.add_columns(
        0.0, share, integer=binary, names=tuple(f"u[{problem.servers[s]}]" for s in servers) if names else ()
    )
    return _Frame(problem, servers, server_of_option, options, per_unit, upper, unserved, names)


def _assignment_rows(builder: _Builder, frame: _Frame) -> None:
    """``sum_j y[j] + u[s] = 1``: one option, or unserved."""
    count = len(frame.servers)
    builder.add_rows(
        [(frame.server_of_option, frame.option_column, 1.0), (np.arange(count), frame.unserved, 1.0)],
        1.0,
        1.0,
        count,
        frame.names("assign", frame.servers),
    )


def _cover_rows(
    builder: _Builder, frame: _Frame, which: BoolArray, coefficient: FloatArray, lower: float, stem: str
) -> None:
    """``sum_j coefficient[j] n[j] + u[s] >= lower`` for the kept servers in `which`."""
    position = np.cumsum(which) - 1
    mine = which[frame.server_of_option]
    count = int(which.sum())
    builder.add_rows(
        [
            (position[frame.server_of_option[mine]], frame.option_column[mine], coefficient[mine]),
            (np.arange(count), frame.unserved[which], 1.0),
        ],
        lower,
        np.inf,
        count,
        frame.names(stem, frame.servers[which]),
    )


def _demand_rows(builder: _Builder, frame: _Frame) -> None:
    """``sum_j min(c[j] / d[s], 1) n[j] + u[s] >= 1`` where there is load.

    A coefficient above 1 is cut to 1: for integer n it allows the same plans and relaxes to fewer points.
    """
    problem = frame.problem
    loaded = problem.arrival_rps[frame.servers] > 0
    demand = problem.arrival_rps[problem.option_server]
    share = np.ones(len(demand))
    np.divide(problem.capacity_rps, demand, out=share, where=demand > 0)
    _cover_rows(builder, frame, loaded, np.minimum(share, 1.0), 1.0 - DEMAND_TOLERANCE, "demand")


def _minimum_rows(builder: _Builder, frame: _Frame) -> None:
    """``sum_j n[j] / minReplicas[s] + u[s] >= 1`` where there is a minimum.

    Dropped where the demand row implies it: a minimum of 1 under load.
    """
    problem = frame.problem
    minimum = problem.min_replicas[frame.servers]
    wanted = (minimum > 1) | ((minimum == 1) & (problem.arrival_rps[frame.servers] == 0))
    coefficient = 1.0 / np.maximum(problem.min_replicas[problem.option_server], 1)
    _cover_rows(builder, frame, wanted, coefficient, 1.0 - DEMAND_TOLERANCE, "minimum")


def _maximum_rows(builder: _Builder, frame: _Frame) -> None:
    """``sum_j n[j] <= maxReplicas[s]`` where there is a maximum."""
    maximum = frame.problem.max_replicas[frame.servers]
    limited = maximum != NO_LIMIT
    position = np.cumsum(limited) - 1
    mine = limited[frame.server_of_option]
    builder.add_rows(
        [(position[frame.server_of_option[mine]], frame.option_column[mine], 1.0)],
        -np.inf,
        maximum[limited].astype(np.float64),
        int(limited.sum()),
        frame.names("maximum", frame.servers[limited]),
    )


def _type_limit_rows(builder: _Builder, frame: _Frame) -> None:
    """``n[j] <= bound[j] used[j]`` and ``sum_j used[j] <= maxTypes[s]``, where that can bind."""
    limit = frame.problem.max_types[frame.servers]
    options_of_server = np.bincount(frame.server_of_option, minlength=len(frame.servers))
    tight = options_of_server > limit
    if not tight.any():
        return
    mine = np.flatnonzero(tight[frame.server_of_option])
    names = frame.names("used", frame.problem.option_server[mine])
    used = builder.add_columns(0.0, np.ones(len(mine)), integer=True, names=names)
    row = np.arange(len(mine))
    builder.add_rows(
        [(row, frame.option_column[mine], 1.0), (row, used, -frame.upper[mine].astype(np.float64))],
        -np.inf,
        0.0,
        len(mine),
        frame.names("use", frame.problem.option_server[mine]),
    )
    position = np.cumsum(tight) - 1
    builder.add_rows(
        [(position[frame.server_of_option[mine]], used, 1.0)],
        -np.inf,
        limit[tight].astype(np.float64),
        int(tight.sum()),
        frame.names("types", frame.servers[tight]),
    )


def _all_or_nothing_rows(builder: _Builder, frame: _Frame) -> None:
    """``sum_j (n[j] - least[j]) <= U[s] (1 - u[s])`` with binary u and U the sum of the bounds."""
    count = len(frame.servers)
    least = np.bincount(frame.server_of_option, frame.problem.least, minlength=count).astype(np.float64)
    most = np.bincount(frame.server_of_option, frame.upper, minlength=count) - least
    builder.add_rows(
        [
            (frame.server_of_option, frame.option_column, 1.0),
            (np.arange(count), frame.unserved, most),
        ],
        -np.inf,
        most + least,
        count,
        frame.names("allOrNothing", frame.servers),
    )


def _inventory_rows(builder: _Builder, frame: _Frame) -> IntArray:
    """``sum_j gpus[j] n[j] <= GPUs of the type`` where the type is limited; the row of each type or -1."""
    problem = frame.problem
    limited = problem.inventory.gpus != NO_LIMIT
    position = np.where(limited, np.cumsum(limited) - 1, -1)
    mine = limited[problem.gpu_type]
    cards = (problem.gpus * frame.per_unit).astype(np.float64)
    rows = builder.add_rows(
        [(position[problem.gpu_type[mine]], frame.option_column[mine], cards[mine])],
        -np.inf,
        problem.inventory.gpus[limited].astype(np.float64),
        int(limited.sum()),
        tuple(f"gpus[{problem.gpu_types[t]}]" for t in np.flatnonzero(limited)) if frame.named else (),
    )
    result = np.full(len(problem.gpu_types), -1, dtype=np.int64)
    result[limited] = rows
    return result


def _node_rows(builder: _Builder, frame: _Frame) -> IntArray:
    """Replicas of k cards need nodes with k free cards; the row of size 1 of each type or -1.

    Sizes that divide each other, for each size k: ``sum over j with gpus[j] >= k of gpus[j] n[j] <= sum
    over nodes of k floor(free / k)``. This is exact: the largest replicas first, each takes whole slots of
    every smaller size. Other sizes: integer ``fill[f, p]`` counts nodes with f free cards filled by the
    maximal pattern p, and ``sum over j with gpus[j] = k of n[j] <= sum p[k] fill[f, p]``.
    """
    problem = frame.problem
    single = np.full(len(problem.gpu_types), -1, dtype=np.int64)
    for t, nodes in enumerate(problem.inventory.nodes):
        mine = np.flatnonzero(problem.gpu_type == t)
        if nodes is None or not mine.size:
            continue
        sizes = np.unique(problem.gpus[mine]).tolist()
        name = problem.gpu_types[t]
        if is_chain(sizes):
            free = np.array(nodes, dtype=np.int64)
            for size in sizes:
                large = mine[problem.gpus[mine] >= size]
                cards = (problem.gpus[large] * frame.per_unit[large]).astype(np.float64)
                row = builder.add_rows(
                    [(np.zeros(len(large), dtype=np.int64), frame.option_column[large], cards)],
                    -np.inf,
                    float(size * (free // size).sum()),
                    1,
                    (f"nodes[{name},{size}]",) if frame.named else (),
                )
                if size == 1:
                    single[t] = row[0]
        else:
            _pattern_rows(builder, frame, t, mine, tuple(sorted(sizes, reverse=True)))
    return single


def _pattern_rows(builder: _Builder, frame: _Frame, t: int, mine: IntArray, sizes: tuple[int, ...]) -> None:
    """Node rows of `_node_rows` for sizes that do not divide each other."""
    problem = frame.problem
    nodes = problem.inventory.nodes[t]
    if nodes is None:
        raise ValueError("pattern rows need nodes")
    frees, counts = np.unique(np.array(nodes, dtype=np.int64), return_counts=True)
    name = problem.gpu_types[t]
    supply: list[list[tuple[IntArray, tuple[int, ...]]]] = []
    for free, count in zip(frees.tolist(), counts.tolist(), strict=True):
        fillings = patterns(free, sizes)
        names = tuple(f"fill[{name},{free},{p}]" for p in range(len(fillings))) if frame.named else ()
        fill = builder.add_columns(0.0, np.full(len(fillings), count), integer=True, names=names)
        builder.add_rows(
            [(np.zeros(len(fill), dtype=np.int64), fill, 1.0)],
            -np.inf,
            float(count),
            1,
            (f"nodes[{name},{free}]",) if frame.named else (),
        )
        supply.append([(fill[p : p + 1], pattern) for p, pattern in enumerate(fillings)])
    for index, size in enumerate(sizes):
        same = mine[problem.gpus[mine] == size]
        offered = [
            (column, pattern[index]) for group in supply for column, pattern in group if pattern[index]
        ]
        entries: list[_Entries] = [
            (
                np.zeros(len(same), dtype=np.int64),
                frame.option_column[same],
                frame.per_unit[same].astype(np.float64),
            )
        ]
        entries += [(np.zeros(1, dtype=np.int64), column, -float(number)) for column, number in offered]
        builder.add_rows(entries, -np.inf, 0.0, 1, (f"placed[{name},{size}]",) if frame.named else ())


def _service_objective(builder: _Builder, frame: _Frame, level: Level) -> Objective:
    """Return one of the three service levels, over the servers of the level.

    unserved: ``sum weight[s] u[s]``; worst: ``w`` with ``w >= u[s]``; unmet: ``sum weight[s] v[s]`` with
    binary ``v[s] >= u[s]``.
    """
    kept = np.flatnonzero(level.servers[frame.servers])
    weight = frame.problem.weight[frame.servers[kept]]
    mine = frame.unserved[kept]
    count = len(kept)
    if level.kind is LevelKind.UNSERVED:
        columns, value = mine, weight
    elif level.kind is LevelKind.WORST_SHARE:
        columns = builder.add_columns(
            0.0, np.ones(1), integer=False, names=(f"worst[{level.name}]",) if frame.named else ()
        )
        value = np.ones(1)
        entries: list[_Entries] = [
            (np.arange(count), np.repeat(columns, count), 1.0),
            (np.arange(count), mine, -1.0),
        ]
        builder.add_rows(entries, 0.0, np.inf, count, frame.names("worst", frame.servers[kept]))
    else:
        columns = builder.add_columns(
            0.0, np.ones(count), integer=True, names=frame.names("unmet", frame.servers[kept])
        )
        value = weight
        entries = [(np.arange(count), columns, 1.0), (np.arange(count), mine, -1.0)]
        builder.add_rows(entries, 0.0, np.inf, count, frame.names("unmet", frame.servers[kept]))
    cost = np.zeros(builder.columns)
    cost[columns] = value
    everything = 1.0 if level.kind is LevelKind.WORST_SHARE else float(weight.sum())
    return Objective(level, cost, 0.0, everything)


def _cost_objective(
    builder: _Builder, frame: _Frame, level: Level, *, whole: bool
) -> tuple[Objective, IntArray]:
    """``sum_j cost[j] n[j]`` plus the switching penalty; and `Formulation.left_column`.

    The penalty is ``switchingPenalty`` times (the cost of accelerators left + the cost of those newly taken
    up by a server that has a current allocation). In the whole program the first part is a constant of each
    option; otherwise ``left[c] >= 1 - sum n[j]`` over the options on that accelerator.
    """
    problem = frame.problem
    factor = problem.policy.switching_factor
    left_column = np.full(len(problem.current_server), -1, dtype=np.int64)
    if whole:
        # Without any option everything is left; each option's cost alone says what it takes back.
        left_of = np.bincount(
            problem.current_server, problem.current_cost_per_h, minlength=len(problem.servers)
        )
        cost = np.zeros(builder.columns)
        cost[frame.option_column] = cost_alone_per_h(problem) - factor * left_of[problem.option_server]
        return Objective(level, cost, factor * float(left_of.sum()), 0.0), left_column

    width = max(len(problem.accelerators), 1)
    option_pair = problem.option_server * width + problem.option_accelerator
    current_pair = problem.current_server * width + problem.current_accelerator
    leaving = factor * problem.current_cost_per_h
    reachable = np.isin(current_pair, option_pair)
    offset = float(leaving[~reachable].sum())
    names = frame.names("left", problem.current_server[reachable])
    left = builder.add_columns(0.0, np.ones(int(reachable.sum())), integer=False, names=names)
    left_column[reachable] = left
    pairs = current_pair[reachable]
    order = np.argsort(pairs)
    mine = np.flatnonzero(np.isin(option_pair, pairs))
    row_of_option = order[np.searchsorted(pairs[order], option_pair[mine])] if len(order) else mine
    builder.add_rows(
        [(np.arange(len(pairs)), left, 1.0), (row_of_option, frame.option_column[mine], 1.0)],
        1.0,
        np.inf,
        len(pairs),
        frame.names("leave", problem.current_server[reachable]),
    )
    cost = np.zeros(builder.columns)
    cost[frame.option_column] = problem.cost_per_h * (1.0 + factor * problem.option_is_new)
    cost[left] = leaving[reachable]
    return Objective(level, cost, offset, 0.0), left_column

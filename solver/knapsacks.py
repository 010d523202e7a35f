# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
"""Branch and bound for the generalised assignment problem, bounded by one knapsack per pool.

Every server takes one of its options; an option fills part of one pool. The rows that say "one option" are
relaxed with a multiplier per server (Ross and Soland 1975, doi:10.1007/BF01580430), which leaves a knapsack
per pool: a bound that sees that what is left of a pool may fit nobody, which the linear relaxation does not.
What a plan with an option is worth at least is read off the same knapsacks (Posta, Ferland and Michelon 2012,
doi:10.1007/s10589-011-9432-0).

Written in Cython's pure Python mode, and compiled when the package is built: a node is thousands of steps of
a few instructions each, which no array operation stands for. Types for callers are in `knapsacks.pyi`.
"""

import cython
import numpy as np
from cython.cimports.libc.math import sqrt

# What is not compiled is too slow to be of use.
IS_COMPILED = cython.compiled

# Knapsacks are solved to this part of the plan's worth, which bounds their states, or of the step to a better
# plan where that is less; a step is at least so much of the worth.
_EXACT, _EXACT_OF_STEP, _LEAST_STEP = 1e-7, 0.25, 5e-9

# Relative rounding error of a bound.
_ROUNDING = cython.declare(cython.double, 1e-11)

# States of a knapsack at most, and steps that led to them; cells of a table of all capacities. A knapsack
# with more is bounded by its linear relaxation, and one with a larger table excludes no option.
_STATES = cython.declare(cython.Py_ssize_t, 20_000)
_STEPS = cython.declare(cython.Py_ssize_t, 400_000)
_CELLS = cython.declare(cython.Py_ssize_t, 2_000_000)

# Multipliers are sought this many iterations long, at the root and below, aiming at first at this part of the
# cost, or of the gap, above the best bound, and at half of it after so many iterations without progress.
_ROOT_ITERATIONS = cython.declare(cython.Py_ssize_t, 400)
_ITERATIONS = cython.declare(cython.Py_ssize_t, 45)
_ROOT_AIM = cython.declare(cython.double, 0.02)
_AIM = cython.declare(cython.double, 0.1)
_ROOT_PATIENCE = cython.declare(cython.Py_ssize_t, 10)
_PATIENCE = cython.declare(cython.Py_ssize_t, 10)

# Share of the last direction kept in the next, and of the last solution in the average.
_MOMENTUM = cython.declare(cython.double, 0.7)
_NEW = cython.declare(cython.double, 0.1)

# A plan is sought every so many iterations.
_SEARCHED = cython.declare(cython.Py_ssize_t, 10)

# Rounds of local search.
_ROUNDS = cython.declare(cython.Py_ssize_t, 30)

# Memory for open nodes, bytes.
_NODE_BYTES = cython.declare(cython.Py_ssize_t, 64_000_000)

_HUGE = cython.declare(cython.double, 1e300)


@cython.final
@cython.cclass
class Assignment:
    """A generalised assignment problem, and its branch and bound.

    Parameters
    ----------
    server : (K,) int64
        Server of each option, 0..n-1; options by pool.
    pool_start : (P + 1,) int64
        Options of pool p are ``pool_start[p]:pool_start[p + 1]``.
    weight : (K,) int64
        What an option takes of its pool, >= 0; 0 only where the pool has room for all its options.
    cost : (K,) float
    capacity : (P,) int64
    multipliers : (n,) float
        To start from.
    """

    n: cython.Py_ssize_t
    options: cython.Py_ssize_t
    pools: cython.Py_ssize_t
    server: cython.longlong[::1]
    start: cython.longlong[::1]
    weight: cython.longlong[::1]
    cost: cython.double[::1]
    capacity: cython.longlong[::1]
    pool: cython.longlong[::1]
    of_start: cython.longlong[::1]
    of: cython.longlong[::1]
    # The node that is looked at.
    out: cython.uchar[::1]
    done: cython.uchar[::1]
    left: cython.longlong[::1]
    base: cython.double
    multipliers: cython.double[::1]
    u: cython.double[::1]
    best_u: cython.double[::1]
    times: cython.longlong[::1]
    direction: cython.double[::1]
    taken: cython.uchar[::1]
    average: cython.double[::1]
    loss_in: cython.double[::1]
    loss_out: cython.double[::1]
    least: cython.double[::1]
    exact: cython.double
    # One knapsack.
    order: cython.longlong[::1]
    others: cython.longlong[::1]
    item: cython.longlong[::1]
    item_weight: cython.longlong[::1]
    profit: cython.double[::1]
    chosen: cython.uchar[::1]
    state_weight: cython.longlong[::1]
    state_profit: cython.double[::1]
    state_step: cython.longlong[::1]
    next_weight: cython.longlong[::1]
    next_profit: cython.double[::1]
    next_step: cython.longlong[::1]
    step_before: cython.longlong[::1]
    step_item: cython.longlong[::1]
    most: cython.double
    most_step: cython.Py_ssize_t
    steps: cython.Py_ssize_t
    forward: cython.double[::1]
    backward: cython.double[::1]
    # Plans.
    plan: cython.longlong[::1]
    room: cython.longlong[::1]
    best_plan: cython.longlong[::1]
    value: cython.double
    root_least: cython.double[::1]
    excluded_least: cython.double

    def __init__(self, server, pool_start, weight, cost, capacity, multipliers):
        self.server = np.ascontiguousarray(server, dtype=np.int64)
        self.start = np.ascontiguousarray(pool_start, dtype=np.int64)
        self.weight = np.ascontiguousarray(weight, dtype=np.int64)
        self.cost = np.ascontiguousarray(cost, dtype=np.float64)
        self.capacity = np.ascontiguousarray(capacity, dtype=np.int64)
        self.multipliers = np.array(multipliers, dtype=np.float64)
        self.n, self.options, self.pools = len(multipliers), len(server), len(capacity)
        n, options, pools = self.n, self.options, self.pools
        self.pool = np.repeat(np.arange(pools), np.diff(pool_start))
        self.of = np.argsort(server, kind="stable")
        self.of_start = np.r_[0, np.cumsum(np.bincount(server, minlength=n))].astype(np.int64)
        self.out, self.done = np.zeros(options, dtype=np.uint8), np.zeros(n, dtype=np.uint8)
        self.left = np.zeros(pools, dtype=np.int64)
        self.u, self.best_u, self.direction = np.zeros(n), np.zeros(n), np.zeros(n)
        self.times = np.zeros(n, dtype=np.int64)
        self.taken = np.zeros(options, dtype=np.uint8)
        self.average, self.least, self.root_least = np.zeros(options), np.zeros(options), np.zeros(options)
        self.loss_in, self.loss_out = np.zeros(options), np.zeros(options)
        self.order, self.others = np.arange(options), np.zeros(options, dtype=np.int64)
        self.item, self.item_weight = np.zeros(options, dtype=np.int64), np.zeros(options, dtype=np.int64)
        self.profit, self.chosen = np.zeros(options), np.zeros(options, dtype=np.uint8)
        self.state_weight, self.next_weight = np.empty(_STATES, np.int64), np.empty(_STATES, np.int64)
        self.state_profit, self.next_profit = np.empty(_STATES), np.empty(_STATES)
        self.state_step, self.next_step = np.empty(_STATES, np.int64), np.empty(_STATES, np.int64)
        self.step_before, self.step_item = np.empty(_STEPS, np.int64), np.empty(_STEPS, np.int64)
        self.forward, self.backward = np.empty(_CELLS), np.empty(_CELLS)
        self.plan, self.room = np.zeros(n, dtype=np.int64), np.zeros(pools, dtype=np.int64)
        self.best_plan = np.full(n, -1, dtype=np.int64)

    def bounds(self, multipliers):
        """Lagrangian bound at multipliers of the servers, shape (n,), and with each option, shape (K,).

        No plan is worth less, and no plan with the option.
        """
        self.out[:] = 0
        self.exact = 0.0
        here = np.asarray(self.u)
        here[:] = multipliers
        self.least[:] = -_HUGE
        if self._settle() < 0:
            return np.inf, np.full(self.options, np.inf)
        bound = self._lagrangian()
        self._losses()
        self._exclude(bound, 2.0 * _HUGE)
        return bound, np.maximum(self.least, bound)

    def solve(self, value, step: cython.double, most_nodes, left_s):
        """Search for a plan worth less than `value` by more than `step`, and a bound on all plans.

        Parameters
        ----------
        value : float
            Of the best plan known; finite.
        step : float
            Least improvement worth looking for, >= 0.
        most_nodes : int
        left_s : callable
            Seconds that are left; asked at every node.

        Returns
        -------
        plan : (n,) int64 or None
            The option of each server; None where no better plan was found.
        value : float
        bound : float
            No plan is worth less than the lesser of this and `value`.
        least : (K,) float
            No plan with the option is worth less than the lesser of this and ``value - step``.
        nodes : int
        """
        n, options = self.n, self.options
        most_open = max(min(_NODE_BYTES // (8 * n + options + 8), 20_000), 50)
        open_out = np.zeros((most_open, options), dtype=np.uint8)
        open_u = np.zeros((most_open, n))
        open_bound = np.full(most_open, -_HUGE)
        open_u[0] = self.multipliers
        count, nodes, lowest = 1, 0, _HUGE
        self.value = value
        step = max(step, _LEAST_STEP * abs(value))
        before: cython.double
        bound: cython.double
        is_root: cython.bint
        self.exact = min(_EXACT * abs(value), _EXACT_OF_STEP * step / self.pools)
        here_out, here_u = np.asarray(self.out), np.asarray(self.u)
        least = np.asarray(self.least)
        start, of = np.asarray(self.of_start), np.asarray(self.of)
        self.least[:] = -_HUGE
        self.excluded_least = _HUGE
        while count and nodes < most_nodes and (nodes == 0 or left_s() > 0):
            place = int(np.argmin(open_bound[:count]))
            before = open_bound[place]
            if before >= self.value - step:
                # So are all the others.
                break
            here_out[:], here_u[:] = open_out[place], open_u[place]
            count -= 1
            if place < count:
                open_out[place], open_u[place] = open_out[count], open_u[count]
                open_bound[place] = open_bound[count]
            is_root = nodes == 0
            with cython.nogil:
                bound = self._node(step, before, is_root)
            nodes += 1
            if nodes == 1:
                np.maximum(least, bound, out=np.asarray(self.root_least))
            bound = max(bound, before)
            if bound >= self.value - step:
                lowest = min(lowest, bound)
                continue
            branch = self._branch()
            if branch < 0:
                # One option is left of every server: that plan is looked at once more.
                children, bounds = here_out[None], bound
            else:
                mine = of[start[branch] : start[branch + 1]]
                mine = mine[here_out[mine] == 0]
                children = np.repeat(here_out[None], len(mine), axis=0)
                children[:, mine] = 1
                children[np.arange(len(mine)), mine] = 0
                bounds = np.maximum(least[mine], bound)
            end = count + len(children)
            if end > most_open:
                lowest = min(lowest, bound)
                break
            open_out[count:end], open_u[count:end], open_bound[count:end] = children, here_u, bounds
            count = end
        lowest = min(lowest, self.excluded_least, float(open_bound[:count].min(initial=_HUGE)))
        bound = min(lowest, self.value)
        plan = np.array(self.best_plan) if self.value < value else None
        return plan, self.value, bound, np.asarray(self.root_least), nodes

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def _node(self, step: cython.double, before: cython.double, is_root: cython.bint) -> cython.double:
        """Bound the node, excluding options on the way; at least `value` - `step` where nothing is better."""
        cutoff: cython.double = self.value - step
        bound: cython.double
        if self._settle() < 0:
            return _HUGE
        if is_root:
            bound = self._ascend(_ROOT_AIM * abs(cutoff), _ROOT_ITERATIONS, _ROOT_PATIENCE, step)
        else:
            bound = self._ascend(_AIM * (cutoff - before), _ITERATIONS, _PATIENCE, step)
        if bound < self.value - step:
            self._search()
        cutoff = self.value - step
        if bound < cutoff:
            self._losses()
            self._exclude(bound, cutoff)
        return bound

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def _settle(self) -> cython.Py_ssize_t:
        """Fix servers with one option left; the number of the others, -1 where one has none."""
        j: cython.Py_ssize_t
        a: cython.Py_ssize_t
        k: cython.Py_ssize_t
        last: cython.Py_ssize_t
        there: cython.Py_ssize_t
        open_: cython.Py_ssize_t = self.n
        moved: cython.bint = True
        self.left[:] = self.capacity
        self.done[:] = 0
        self.base = 0.0
        while moved:
            moved = False
            for j in range(self.n):
                if self.done[j]:
                    continue
                there = 0
                last = -1
                for a in range(self.of_start[j], self.of_start[j + 1]):
                    k = self.of[a]
                    if not self.out[k] and self.weight[k] > self.left[self.pool[k]]:
                        self.out[k] = 1
                    if not self.out[k]:
                        there += 1
                        last = k
                if there == 0:
                    return -1
                if there == 1:
                    self.done[j] = 1
                    self.left[self.pool[last]] -= self.weight[last]
                    self.base += self.cost[last]
                    open_ -= 1
                    moved = True
        return open_

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def _items(self, p: cython.Py_ssize_t) -> cython.Py_ssize_t:
        """List the options of a pool that are worth taking, best profit per weight first; how many.

        `order` keeps the pool's options nearly in that order from one call to the next.
        """
        order: cython.p_longlong = cython.address(self.order[0])
        items: cython.p_longlong = cython.address(self.item[0])
        weights: cython.p_longlong = cython.address(self.item_weight[0])
        profits: cython.p_double = cython.address(self.profit[0])
        a: cython.Py_ssize_t
        b: cython.Py_ssize_t
        k: cython.Py_ssize_t
        count: cython.Py_ssize_t = 0
        passed: cython.Py_ssize_t = self.start[p]
        weight: cython.longlong
        profit: cython.double
        for a in range(self.start[p], self.start[p + 1]):
            k = order[a]
            profit = self.u[self.server[k]] - self.cost[k]
            weight = self.weight[k]
            if profit <= 0 or self.out[k] or self.done[self.server[k]] or weight > self.left[p]:
                self.others[passed] = k
                passed += 1
                continue
            b = count - 1
            while b >= 0 and profits[b] * weight < profit * weights[b]:
                items[b + 1] = items[b]
                weights[b + 1] = weights[b]
                profits[b + 1] = profits[b]
                b -= 1
            items[b + 1] = k
            weights[b + 1] = weight
            profits[b + 1] = profit
            count += 1
        for a in range(count):
            order[self.start[p] + a] = items[a]
        for a in range(self.start[p], passed):
            order[a + count] = self.others[a]
        return count

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def _lagrangian(self) -> cython.double:
        """Bound at the multipliers, and the solutions of the knapsacks: `taken` and how often each server."""
        p: cython.Py_ssize_t
        j: cython.Py_ssize_t
        a: cython.Py_ssize_t
        count: cython.Py_ssize_t
        total: cython.longlong
        profit: cython.double
        bound: cython.double = self.base
        size: cython.double = abs(self.base)
        self.taken[:] = 0
        self.times[:] = 0
        for j in range(self.n):
            if not self.done[j]:
                bound += self.u[j]
                size += abs(self.u[j])
        for p in range(self.pools):
            count = self._items(p)
            total = 0
            profit = 0.0
            for a in range(count):
                total += self.item_weight[a]
                profit += self.profit[a]
                self.chosen[a] = 1
            if total > self.left[p]:
                profit = self._knapsack(count, self.left[p])
            bound -= profit
            size += profit
            for a in range(count):
                if self.chosen[a]:
                    self.taken[self.item[a]] = 1
                    self.times[self.server[self.item[a]]] += 1
        return bound - _ROUNDING * size

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def _knapsack(self, count: cython.Py_ssize_t, capacity: cython.longlong) -> cython.double:
        """Most profit of the items within the capacity, which not all are: an upper bound, `exact` too high.

        Dynamic programming over the items around the one that breaks the greedy solution, with states that
        no bound of their completions excludes (Pisinger 1997, doi:10.1287/opre.45.5.758).
        """
        weight: cython.longlong = 0
        profit: cython.double = 0.0
        fractional: cython.double
        states: cython.Py_ssize_t = 1
        split: cython.Py_ssize_t = 0
        low: cython.Py_ssize_t
        high: cython.Py_ssize_t
        a: cython.Py_ssize_t
        is_adding: cython.bint = True
        while weight + self.item_weight[split] <= capacity:
            weight += self.item_weight[split]
            profit += self.profit[split]
            split += 1
        fractional = profit + (capacity - weight) * self.profit[split] / self.item_weight[split]
        self.most, self.most_step, self.steps = profit, 0, 1
        self.step_before[0] = -1
        for a in range(split, count):
            if self.item_weight[a] <= capacity - weight and profit + self.profit[a] > self.most:
                self.most, self.most_step, self.steps = profit + self.profit[a], 1, 2
                self.step_before[1] = 0
                self.step_item[1] = a
        self.state_weight[0] = weight
        self.state_profit[0] = profit
        self.state_step[0] = 0
        low, high = split - 1, split
        while states > 0 and (low >= 0 or high < count):
            if (is_adding and high < count) or low < 0:
                high += 1
                states = self._merge(states, high - 1, 1, low, high, count, capacity)
            else:
                low -= 1
                states = self._merge(states, low + 1, -1, low, high, count, capacity)
            is_adding = not is_adding
        for a in range(count):
            self.chosen[a] = a < split
        while self.most_step > 0:
            a = self.step_item[self.most_step]
            self.chosen[a] = not self.chosen[a]
            self.most_step = self.step_before[self.most_step]
        return fractional if states < 0 else min(self.most + self.exact, fractional)

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def _merge(
        self,
        states: cython.Py_ssize_t,
        item: cython.Py_ssize_t,
        sign: cython.longlong,
        low: cython.Py_ssize_t,
        high: cython.Py_ssize_t,
        count: cython.Py_ssize_t,
        capacity: cython.longlong,
    ) -> cython.Py_ssize_t:
        """Join the states with themselves after adding or removing an item; how many, -1 for too many.

        Items from 0 to `low` may be removed yet, and those from `high` on added. States are by rising weight
        and profit.
        """
        weights: cython.p_longlong = cython.address(self.state_weight[0])
        profits: cython.p_double = cython.address(self.state_profit[0])
        last_steps: cython.p_longlong = cython.address(self.state_step[0])
        to_weights: cython.p_longlong = cython.address(self.next_weight[0])
        to_profits: cython.p_double = cython.address(self.next_profit[0])
        to_steps: cython.p_longlong = cython.address(self.next_step[0])
        weight: cython.longlong
        by_weight: cython.longlong = sign * self.item_weight[item]
        by_profit: cython.double = sign * self.profit[item]
        # Least loss of profit per weight too many, and most gain per weight to spare.
        loss: cython.double = self.profit[low] / self.item_weight[low] if low >= 0 else 0.0
        gain: cython.double = self.profit[high] / self.item_weight[high] if high < count else 0.0
        profit: cython.double
        most: cython.double = self.most
        last: cython.double = -_HUGE
        old: cython.Py_ssize_t = 0
        new: cython.Py_ssize_t = 0
        kept: cython.Py_ssize_t = 0
        taken: cython.Py_ssize_t = self.steps
        step: cython.Py_ssize_t
        is_new: cython.bint
        while old < states or new < states:
            is_new = old >= states or (new < states and weights[new] + by_weight < weights[old])
            if is_new:
                weight = weights[new] + by_weight
                profit = profits[new] + by_profit
                step = last_steps[new]
                new += 1
            else:
                weight = weights[old]
                profit = profits[old]
                step = last_steps[old]
                old += 1
            if profit <= last:
                continue
            if weight > capacity:
                if low < 0 or profit - (weight - capacity) * loss <= most + self.exact:
                    continue
            elif profit <= most and profit + (capacity - weight) * gain <= most + self.exact:
                continue
            if taken >= _STEPS or kept >= _STATES:
                return -1
            if is_new:
                self.step_before[taken] = step
                self.step_item[taken] = item
                step = taken
                taken += 1
            if weight <= capacity and profit > most:
                most = profit
                self.most_step = step
            if kept > 0 and to_weights[kept - 1] == weight:
                kept -= 1
            to_weights[kept] = weight
            to_profits[kept] = profit
            to_steps[kept] = step
            kept += 1
            last = profit
        self.most, self.steps = most, taken
        self.state_weight, self.next_weight = self.next_weight, self.state_weight
        self.state_profit, self.next_profit = self.next_profit, self.state_profit
        self.state_step, self.next_step = self.next_step, self.state_step
        return kept

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def _ascend(
        self,
        aim: cython.double,
        iterations: cython.Py_ssize_t,
        patience: cython.Py_ssize_t,
        step: cython.double,
    ) -> cython.double:
        """Raise the bound by subgradient steps, seeking plans on the way; ends with the best multipliers.

        Steps aim at a value above the best bound that comes closer where there is no progress (Goffin and
        Kiwiel 1999, doi:10.1007/s101070050084); `average` weighs the solutions as the volume algorithm does
        (Barahona and Anbil 2000, doi:10.1007/s101070050002).
        """
        best: cython.double = -_HUGE
        bound: cython.double
        norm: cython.double
        length: cython.double
        gained: cython.double = 0.0
        first_aim: cython.double = aim
        stalled: cython.Py_ssize_t = 0
        iteration: cython.Py_ssize_t
        j: cython.Py_ssize_t
        k: cython.Py_ssize_t
        self.direction[:] = 0.0
        for iteration in range(iterations):
            bound = self._lagrangian()
            for k in range(self.options):
                if iteration == 0:
                    self.average[k] = self.taken[k]
                else:
                    self.average[k] += _NEW * (self.taken[k] - self.average[k])
            stalled += 1
            if bound > best:
                if iteration > 0:
                    gained += bound - best
                best = bound
                self.best_u[:] = self.u
                if gained > 0.25 * aim:
                    stalled = 0
                    gained = 0.0
            if iteration % _SEARCHED == _SEARCHED - 1:
                self._search()
            if best >= self.value - step:
                break
            if stalled >= patience:
                aim *= 0.5
                stalled = 0
                gained = 0.0
                self.u[:] = self.best_u
                self.direction[:] = 0.0
                if aim < 1e-3 * first_aim:
                    break
            norm = 0.0
            for j in range(self.n):
                if not self.done[j]:
                    self.direction[j] = 1.0 - self.times[j] + _MOMENTUM * self.direction[j]
                    norm += self.direction[j] * self.direction[j]
            if norm == 0.0:
                break
            length = (best + aim - bound) / norm
            for j in range(self.n):
                if not self.done[j]:
                    self.u[j] += length * self.direction[j]
        self.u[:] = self.best_u
        return best

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def _losses(self) -> cython.void:
        """What the bound rises by, at least, when an option has to be taken, and when it may not be."""
        forward: cython.p_double = cython.address(self.forward[0])
        backward: cython.p_double = cython.address(self.backward[0])
        p: cython.Py_ssize_t
        k: cython.Py_ssize_t
        a: cython.Py_ssize_t
        b: cython.Py_ssize_t
        d: cython.Py_ssize_t
        w: cython.Py_ssize_t
        row: cython.Py_ssize_t
        last: cython.Py_ssize_t
        count: cython.Py_ssize_t
        cells: cython.Py_ssize_t
        total: cython.longlong
        unit: cython.longlong
        q: cython.longlong
        r: cython.longlong
        profit: cython.double
        most: cython.double
        without: cython.double
        with_it: cython.double
        for p in range(self.pools):
            count = self._items(p)
            total = 0
            unit = 0
            for a in range(count):
                total += self.item_weight[a]
                q, r = self.item_weight[a], unit
                while r:
                    q, r = r, q % r
                unit = q
            for k in range(self.start[p], self.start[p + 1]):
                self.loss_in[k] = 0.0
                self.loss_out[k] = 0.0
                if self.weight[k] > self.left[p]:
                    self.loss_in[k] = _HUGE
            if total <= self.left[p] or count == 0:
                for a in range(count):
                    self.loss_out[self.item[a]] = self.profit[a]
                for k in range(self.start[p], self.start[p + 1]):
                    profit = self.u[self.server[k]] - self.cost[k]
                    if profit <= 0 and self.weight[k] <= self.left[p]:
                        self.loss_in[k] = -profit
                continue
            cells = self.left[p] // unit + 1
            if (count + 1) * cells > _CELLS:
                continue
            # Row a: most profit of the items before a, and from a on, within each capacity.
            for d in range(cells):
                forward[d] = 0.0
                backward[count * cells + d] = 0.0
            for a in range(count):
                w = self.item_weight[a] // unit
                row = a * cells
                profit = self.profit[a]
                for d in range(w):
                    forward[row + cells + d] = forward[row + d]
                for d in range(w, cells):
                    forward[row + cells + d] = max(forward[row + d], forward[row + d - w] + profit)
            for b in range(count):
                a = count - 1 - b
                w = self.item_weight[a] // unit
                row = (a + 1) * cells
                profit = self.profit[a]
                for d in range(w):
                    backward[row - cells + d] = backward[row + d]
                for d in range(w, cells):
                    backward[row - cells + d] = max(backward[row + d], backward[row + d - w] + profit)
            most = forward[count * cells + cells - 1]
            for a in range(count):
                w = self.item_weight[a] // unit
                row = a * cells
                last = row + cells + cells - 1
                without, with_it = 0.0, 0.0
                for d in range(cells):
                    without = max(without, forward[row + d] + backward[last - d])
                for d in range(cells - w):
                    with_it = max(with_it, forward[row + d] + backward[last - w - d])
                self.loss_out[self.item[a]] = max(most - without, 0.0)
                self.loss_in[self.item[a]] = max(most - with_it - self.profit[a], 0.0)
            for k in range(self.start[p], self.start[p + 1]):
                profit = self.u[self.server[k]] - self.cost[k]
                if profit <= 0 and self.weight[k] <= self.left[p]:
                    d = (self.left[p] - self.weight[k]) // unit
                    self.loss_in[k] = most - forward[count * cells + d] - profit

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def _exclude(self, bound: cython.double, cutoff: cython.double) -> cython.void:
        """Exclude the options that no plan worth less than `cutoff` has.

        `least` is what a plan with an option is worth at least, if less than `cutoff`: its server takes no
        other then.
        """
        j: cython.Py_ssize_t
        a: cython.Py_ssize_t
        b: cython.Py_ssize_t
        k: cython.Py_ssize_t
        other: cython.Py_ssize_t
        worth: cython.double
        for j in range(self.n):
            for a in range(self.of_start[j], self.of_start[j + 1]):
                k = self.of[a]
                if self.out[k]:
                    continue
                worth = bound
                if not self.done[j]:
                    worth += self.loss_in[k]
                for b in range(self.of_start[j], self.of_start[j + 1]):
                    other = self.of[b]
                    if not self.out[other] and self.pool[other] != self.pool[k]:
                        worth += self._own_loss(j, other)
                self.least[k] = worth
            for a in range(self.of_start[j], self.of_start[j + 1]):
                k = self.of[a]
                if not self.out[k] and self.least[k] >= cutoff:
                    self.out[k] = 1
                    self.excluded_least = min(self.excluded_least, self.least[k])

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def _own_loss(self, j: cython.Py_ssize_t, option: cython.Py_ssize_t) -> cython.double:
        """What the bound rises by without the option; 0 where the server has a better one in its pool.

        Without both it rises by no less than without the better one, but not by the sum.
        """
        a: cython.Py_ssize_t
        k: cython.Py_ssize_t
        for a in range(self.of_start[j], self.of_start[j + 1]):
            k = self.of[a]
            if self.out[k] or k == option or self.pool[k] != self.pool[option]:
                continue
            if self.loss_out[k] > self.loss_out[option] or (
                self.loss_out[k] == self.loss_out[option] and k < option
            ):
                return 0.0
        return self.loss_out[option]

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def _branch(self) -> cython.Py_ssize_t:
        """Server to decide next: the one that takes part of an option that fills most of a pool."""
        j: cython.Py_ssize_t
        a: cython.Py_ssize_t
        k: cython.Py_ssize_t
        there: cython.Py_ssize_t
        result: cython.Py_ssize_t = -1
        part: cython.double
        largest: cython.double
        most: cython.double = -1.0
        for j in range(self.n):
            if self.done[j]:
                continue
            largest = 0.0
            there = 0
            for a in range(self.of_start[j], self.of_start[j + 1]):
                k = self.of[a]
                if self.out[k]:
                    continue
                there += 1
                part = sqrt(min(self.average[k], 1.0 - self.average[k]))
                largest = max(largest, part * self.weight[k] / self.capacity[self.pool[k]])
            if there > 1 and largest > most:
                most = largest
                result = j
        return result

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def _search(self) -> cython.void:
        """Make a plan of what the knapsacks took last, better it by moves, and keep it if it is the best."""
        j: cython.Py_ssize_t
        a: cython.Py_ssize_t
        k: cython.Py_ssize_t
        there: cython.Py_ssize_t
        last: cython.Py_ssize_t
        _turn: cython.Py_ssize_t
        cost: cython.double = 0.0
        is_better: cython.bint = True
        self.room[:] = self.capacity
        for j in range(self.n):
            self.plan[j] = -1
            there = 0
            last = -1
            for a in range(self.of_start[j], self.of_start[j + 1]):
                k = self.of[a]
                if self.out[k]:
                    continue
                there += 1
                last = k
                if self.taken[k] and (self.plan[j] < 0 or self.cost[k] < self.cost[self.plan[j]]):
                    self.plan[j] = k
            if there == 1:
                self.plan[j] = last
            if self.plan[j] >= 0:
                self.room[self.pool[self.plan[j]]] -= self.weight[self.plan[j]]
        for k in range(self.pools):
            if self.room[k] < 0:
                return
        if not self._complete():
            return
        for _turn in range(_ROUNDS):
            if not is_better:
                break
            is_better = False
            for j in range(self.n):
                if self._move(j):
                    is_better = True
        for j in range(self.n):
            cost += self.cost[self.plan[j]]
        if cost < self.value:
            self.value = cost
            self.best_plan[:] = self.plan

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def _complete(self) -> cython.bint:
        """Give the servers without an option one, dearest to leave for later first; whether all have one."""
        j: cython.Py_ssize_t
        a: cython.Py_ssize_t
        k: cython.Py_ssize_t
        next_: cython.Py_ssize_t
        option: cython.Py_ssize_t
        cheapest: cython.Py_ssize_t
        first: cython.double
        second: cython.double
        regret: cython.double
        while True:
            next_, option, regret = -1, -1, -1.0
            for j in range(self.n):
                if self.plan[j] >= 0:
                    continue
                first, second, cheapest = _HUGE, _HUGE, -1
                for a in range(self.of_start[j], self.of_start[j + 1]):
                    k = self.of[a]
                    if self.out[k] or self.weight[k] > self.room[self.pool[k]]:
                        continue
                    if self.cost[k] < first:
                        second, first, cheapest = first, self.cost[k], k
                    elif self.cost[k] < second:
                        second = self.cost[k]
                if cheapest < 0:
                    next_, option = j, -1
                    break
                if second - first > regret:
                    next_, option, regret = j, cheapest, second - first
            if next_ < 0:
                return True
            if option >= 0:
                self._take(next_, option)
            elif not self._displace(next_, _HUGE):
                return False

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def _take(self, j: cython.Py_ssize_t, option: cython.Py_ssize_t) -> cython.void:
        """Let the server take an option for the one it has, if any."""
        if self.plan[j] >= 0:
            self.room[self.pool[self.plan[j]]] += self.weight[self.plan[j]]
        self.plan[j] = option
        self.room[self.pool[option]] -= self.weight[option]

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def _displace(self, j: cython.Py_ssize_t, saving: cython.double) -> cython.bint:
        """Move the server to where another one makes room, at less than `saving` more; whether it did."""
        a: cython.Py_ssize_t
        b: cython.Py_ssize_t
        k: cython.Py_ssize_t
        theirs: cython.Py_ssize_t
        to: cython.Py_ssize_t
        other: cython.Py_ssize_t
        p: cython.Py_ssize_t
        here: cython.Py_ssize_t = self.plan[j]
        best: cython.Py_ssize_t = -1
        best_other: cython.Py_ssize_t = -1
        best_to: cython.Py_ssize_t = -1
        room: cython.longlong
        cost: cython.double
        own: cython.double = 0.0
        if here >= 0:
            own = self.cost[here]
            self.room[self.pool[here]] += self.weight[here]
        for a in range(self.of_start[j], self.of_start[j + 1]):
            k = self.of[a]
            p = self.pool[k]
            if self.out[k] or k == here or self.weight[k] > self.capacity[p]:
                continue
            if here >= 0 and self.cost[k] >= own:
                continue
            for theirs in range(self.start[p], self.start[p + 1]):
                other = self.server[theirs]
                if other == j or self.plan[other] != theirs:
                    continue
                if self.room[p] + self.weight[theirs] < self.weight[k]:
                    continue
                for b in range(self.of_start[other], self.of_start[other + 1]):
                    to = self.of[b]
                    if self.out[to] or to == theirs:
                        continue
                    room = self.room[self.pool[to]]
                    if self.pool[to] == p:
                        room += self.weight[theirs] - self.weight[k]
                    cost = self.cost[k] - own + self.cost[to] - self.cost[theirs]
                    if self.weight[to] <= room and cost < saving:
                        saving = cost
                        best, best_other, best_to = k, other, to
        if here >= 0:
            self.room[self.pool[here]] -= self.weight[here]
        if best < 0:
            return False
        self._take(j, best)
        self._take(best_other, best_to)
        return True

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def _move(self, j: cython.Py_ssize_t) -> cython.bint:
        """Move the server to a cheaper option with room, or to one where another server makes room."""
        a: cython.Py_ssize_t
        k: cython.Py_ssize_t
        here: cython.Py_ssize_t = self.plan[j]
        best: cython.Py_ssize_t = here
        room: cython.longlong
        for a in range(self.of_start[j], self.of_start[j + 1]):
            k = self.of[a]
            room = self.room[self.pool[k]]
            if self.pool[k] == self.pool[here]:
                room += self.weight[here]
            if not self.out[k] and self.weight[k] <= room and self.cost[k] < self.cost[best]:
                best = k
        if best != here:
            self._take(j, best)
            return True
        return self._displace(j, -self.exact)

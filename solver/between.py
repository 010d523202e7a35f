"""Mixes between those among which the relaxation divides a server.

A server that runs many replicas has very many mixes that are nearly as good as its best one. The relaxation
divides it between two that take quite different cards, and only their mean fits. The mixes near that mean
have most of its replicas in common; what is left to serve after these is a small knapsack of its own.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from solver.mixtures import mixtures
from solver.pricing import Columns, Servers
from solver.problem import NO_LIMIT
from solver.reduce import keep
from solver.rows import Rows

if TYPE_CHECKING:
    from collections.abc import Callable

    from solver.milp import FloatArray, IntArray
    from solver.pricing import Prices

# Replicas of each option of the mean that are open again.
_OPEN = 2.0

# Rounding of the relaxation's values.
_INTEGRAL = 1e-6


def mixes_between(
    servers: Servers,
    which: IntArray,
    mean: FloatArray,
    prices: Prices,
    slack: FloatArray,
    left_s: Callable[[], float],
    *,
    most_columns: int,
    tally: IntArray | None,
) -> Columns:
    """Return mixes that serve everything and have nearly the mean's replicas of each option.

    None of servers with a maximum of types, or limits of replicas on an accelerator: what these leave open
    depends on what is there already.

    Parameters
    ----------
    servers : Servers
    which : (n,) int
        Servers, each with an option.
    mean : (J,) float
        Replicas that the relaxation gives each option; they serve these servers in full.
    prices, slack, left_s, most_columns, tally
        As for `mixtures`, of the mixes of what is left to serve.
    """
    problem = servers.problem
    wanted = np.zeros(servers.count, dtype=bool)
    wanted[which] = problem.max_types[which] >= (servers.option[which] >= 0).sum(axis=1)
    wanted[[limit.server for limit in problem.limits]] = False
    options = np.flatnonzero(wanted[problem.option_server])
    common = np.zeros(len(mean), dtype=np.int64)
    common[options] = np.maximum(np.floor(mean[options] + _INTEGRAL) - _OPEN, 0.0)
    served = np.where(problem.arrival_rps > 0, problem.per_server(servers.share * common), 1.0)
    count = problem.per_server(common).astype(np.int64)
    rest = replace(
        keep(problem, options),
        arrival_rps=problem.arrival_rps * np.maximum(1.0 - served, 0.0),
        min_replicas=np.maximum(problem.min_replicas - count, 0),
        max_replicas=np.where(problem.max_replicas == NO_LIMIT, NO_LIMIT, problem.max_replicas - count),
        limits=(),
        own_max_types=(),
    )
    wanted &= ~rest.needs_nothing & (rest.max_replicas > 0)
    found = mixtures(
        Servers(rest),
        np.flatnonzero(wanted),
        replace(prices, replica=prices.replica[options], fixed=0.0),
        np.zeros(servers.count),
        slack,
        left_s,
        most_columns=most_columns,
        tally=None if tally is None else tally[options],
    ).columns
    have = options[common[options] > 0]
    by_server = have[np.argsort(problem.option_server[have], kind="stable")]
    shape = (servers.count, len(mean))
    of_server = Rows.of(problem.option_server[by_server], by_server, common[by_server], shape)
    theirs, mine = of_server.take(found.server), found.replicas
    place = np.r_[theirs.row * len(mean) + theirs.column, mine.row * len(mean) + options[mine.column]]
    place, entry = np.unique(place, return_inverse=True)
    row, option = np.divmod(place, len(mean))
    number = np.bincount(entry, np.r_[theirs.value, mine.value]).astype(np.int64)
    replicas = Rows.of(row, option, number, (len(found), len(mean)))
    kept = np.bincount(row, servers.keeping_per_h[option], minlength=len(found))
    return Columns(found.server, replicas, servers.leaving_per_h[found.server] - kept, np.zeros(len(found)))

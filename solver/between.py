"""Mixes between those among which the relaxation divides a server.

A server that runs many replicas has very many mixes that are nearly as good as its best one. The relaxation
divides it between two that take quite different cards, and only their mean fits. The mixes near that mean
have most of its replicas in common; what is left to serve after these is a small knapsack of its own.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
from scipy.sparse import csr_matrix

from solver.mixtures import mixtures
from solver.pricing import Columns, Servers
from solver.problem import NO_LIMIT
from solver.reduce import keep

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
    replicas = csr_matrix(
        (found.replicas.data, options[found.replicas.indices], found.replicas.indptr),
        shape=(len(found), len(mean)),
    )
    of_server = csr_matrix(
        (common[options], (problem.option_server[options], options)), shape=(servers.count, len(mean))
    )
    replicas = (replicas + of_server[found.server]).tocsr()
    row = np.repeat(np.arange(len(found)), np.diff(replicas.indptr))
    kept = np.bincount(row, servers.keeping_per_h[replicas.indices], minlength=len(found))
    return Columns(found.server, replicas, servers.leaving_per_h[found.server] - kept, np.zeros(len(found)))

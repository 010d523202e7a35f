"""The compact program with some servers given by the list of their columns.

A server that has few columns worth taking is best described by these: the relaxation is then as tight as it
can be. One with very many runs many replicas; counting those loses little. So both stand in one program.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
from scipy.sparse import csr_matrix, vstack

if TYPE_CHECKING:
    from solver.formulate import Formulation
    from solver.milp import BoolArray, FloatArray, IntArray, Milp
    from solver.pricing import Columns, Servers


def below(milp: Milp, value: float) -> Milp:
    """Add the row ``objective <= value``."""
    column = np.flatnonzero(milp.objective)
    return replace(
        milp,
        row_start=np.r_[milp.row_start, milp.row_start[-1] + len(column)].astype(np.int64),
        column=np.r_[milp.column, column],
        value=np.r_[milp.value, milp.objective[column]],
        row_lower=np.r_[milp.row_lower, -np.inf],
        row_upper=np.r_[milp.row_upper, value - milp.offset],
        row_names=(*milp.row_names, "below") if milp.row_names else (),
    )


def with_columns(
    milp: Milp, formulation: Formulation, servers: Servers, columns: Columns
) -> tuple[Milp, csr_matrix]:
    """Let each server that has any of `columns` take exactly one of them.

    Parameters
    ----------
    milp : Milp
        A program of `formulation`, without names.
    formulation : Formulation
        In the integer shape.
    servers : Servers
    columns : Columns
        By server.

    Returns
    -------
    Milp
        The servers' columns of `milp` are gone, and the rows about one of them that its columns keep anyway.
    (n, m) sparse
        Point of `milp` for a point of the new program.
    """
    owner = _owner(formulation, servers)
    is_listed = np.zeros(servers.count, dtype=bool)
    is_listed[columns.server] = True
    gone = (owner >= 0) & is_listed[np.maximum(owner, 0)]
    stays = np.flatnonzero(~gone)
    count, first = len(columns), len(stays)
    row, column, value = _points(formulation, servers, columns)
    back = csr_matrix(
        (np.r_[np.ones(first), value], (np.r_[stays, row], np.r_[np.arange(first), first + column])),
        shape=(milp.columns, first + count),
    )
    matrix = csr_matrix((milp.value, milp.column, milp.row_start), shape=(milp.rows, milp.columns))
    product = (matrix @ back).tocsr()
    kept = ~_kept_anyway(milp, np.where(gone, owner, -1), product, np.bincount(columns.server))
    group = np.unique(columns.server, return_inverse=True)[1]
    groups = int(is_listed.sum())
    one_each = csr_matrix((np.ones(count), (group, first + np.arange(count))), shape=(groups, first + count))
    rows = vstack([product[kept], one_each], format="csr")
    listed = replace(
        milp,
        objective=back.T @ milp.objective,
        row_start=rows.indptr.astype(np.int64),
        column=rows.indices.astype(np.int64),
        value=rows.data,
        row_lower=np.r_[milp.row_lower[kept], np.ones(groups)],
        row_upper=np.r_[milp.row_upper[kept], np.ones(groups)],
        column_lower=np.r_[milp.column_lower[stays], np.zeros(count)],
        column_upper=np.r_[milp.column_upper[stays], np.ones(count)],
        integer=np.r_[milp.integer[stays], np.ones(count, dtype=bool)],
    )
    return listed, back


def _owner(formulation: Formulation, servers: Servers) -> IntArray:
    """Server that each column of the program counts replicas, or what is missing, of; -1 for others."""
    problem = servers.problem
    owner = np.full(formulation.milp.columns, -1, dtype=np.int64)
    owner[formulation.option_column] = problem.option_server
    there = formulation.unserved_column >= 0
    owner[formulation.unserved_column[there]] = np.flatnonzero(there)
    there = formulation.left_column >= 0
    owner[formulation.left_column[there]] = problem.current_server[there]
    return owner


def _kept_anyway(milp: Milp, owner: IntArray, product: csr_matrix, sizes: IntArray) -> BoolArray:
    """Whether a row is about one listed server, and each of its columns keeps it, shape (m,)."""
    about_one = np.zeros(milp.rows, dtype=bool)
    mine = np.full(milp.rows, -1, dtype=np.int64)
    there = np.flatnonzero(np.diff(milp.row_start) > 0)
    owners, starts = owner[milp.column], milp.row_start[there]
    mine[there] = np.minimum.reduceat(owners, starts)
    about_one[there] = (mine[there] == np.maximum.reduceat(owners, starts)) & (mine[there] >= 0)

    stored = np.diff(product.indptr)
    least, most = np.zeros(milp.rows), np.zeros(milp.rows)
    there = np.flatnonzero(stored > 0)
    least[there] = np.minimum.reduceat(product.data, product.indptr[there])
    most[there] = np.maximum.reduceat(product.data, product.indptr[there])
    some_zero = stored < np.append(sizes, 0)[mine]
    least[some_zero] = np.minimum(least[some_zero], 0.0)
    most[some_zero] = np.maximum(most[some_zero], 0.0)
    result: BoolArray = about_one & (least >= milp.row_lower) & (most <= milp.row_upper)
    return result


def _points(
    formulation: Formulation, servers: Servers, columns: Columns
) -> tuple[IntArray, IntArray, FloatArray]:
    """Entries of the points of whole columns: column of the program, position in `columns`, value."""
    problem = servers.problem
    used = columns.replicas
    short = np.flatnonzero(columns.unserved > 0)
    row = [formulation.option_column[used.column], formulation.unserved_column[columns.server[short]]]
    column = [used.row, short]
    value = [used.value.astype(np.float64), columns.unserved[short]]
    # The first accelerator that each server runs on, then the second ...: left where no replica is on it.
    width = max(len(problem.accelerators), 1)
    pair = problem.option_server * width + problem.option_accelerator
    there = np.flatnonzero(formulation.left_column >= 0)
    there = there[np.argsort(problem.current_server[there], kind="stable")]
    mine = problem.current_server[there]
    rank = np.arange(len(there)) - np.searchsorted(mine, mine)
    for r in range(int(rank.max(initial=-1)) + 1):
        now = np.full(servers.count, -1, dtype=np.int64)
        now[mine[rank == r]] = there[rank == r]
        current = now[columns.server]
        runs_on = np.where(current >= 0, columns.server * width + problem.current_accelerator[current], -1)
        kept = np.bincount(used.row, pair[used.column] == runs_on[used.row], minlength=len(columns)) > 0
        left = np.flatnonzero((current >= 0) & ~kept)
        row.append(formulation.left_column[current[left]])
        column.append(left)
        value.append(np.ones(len(left)))
    return np.concatenate(row), np.concatenate(column), np.concatenate(value)

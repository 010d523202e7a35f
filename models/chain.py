# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
"""Sums over the states of a birth-death chain, compiled: one product and two sums a state.

Array operations take an exponential a state instead, as they cannot carry a product along. Types for callers
are in `chain.pyi`.
"""

import cython
import numpy as np
from cython.cimports.libc.math import exp, log

# What is not compiled is too slow to be of use.
IS_COMPILED = cython.compiled

# Weights are kept between 1 / _SCALE and _SCALE, with the number of times they were divided by it.
_SCALE = cython.declare(cython.double, 1e100)
_LOG_SCALE = cython.declare(cython.double, 100.0 * float(np.log(10.0)))


def sums(ratio, member, states, log_load, log_floor):
    """Sum up the weights w(n) = w(n - 1) x load x ratio(n), w(0) = 1, over n = 1..states.

    Parameters
    ----------
    ratio : (M, W) float
        > 0; times the load at most 1e50.
    member : (m,) int64
        Row of `ratio` and `states` of each chain.
    states : (M,) int64
        <= W.
    log_load : (m,) float
    log_floor : (m,) float

    Returns
    -------
    anchor : (m,) float
        At least `log_floor`, and so near to the logarithm of the largest weight that nothing overflows.
    sums : (2, m) float
        The sum of w(n) and the sum of n w(n), both divided by exp(anchor).
    """
    table: cython.double[:, ::1] = np.ascontiguousarray(ratio)
    rows: cython.longlong[:] = member
    counts: cython.longlong[:] = states
    loads: cython.double[:] = np.exp(log_load)
    floors: cython.double[:] = log_floor
    anchors, result = np.empty(len(log_load)), np.empty((2, len(log_load)))
    anchor: cython.double[::1] = anchors
    total: cython.double[:, ::1] = result
    factor: cython.double[::1] = np.empty(ratio.shape[1])
    i: cython.Py_ssize_t
    n: cython.Py_ssize_t
    with cython.nogil:
        for i in range(anchor.shape[0]):
            for n in range(counts[rows[i]]):
                factor[n] = loads[i] * table[rows[i], n]
            anchor[i] = floors[i]
            _add_up(
                cython.address(factor[0]),
                counts[rows[i]],
                cython.address(anchor[i]),
                cython.address(total[0, i]),
                cython.address(total[1, i]),
            )
    return anchors, result


def line_sums(base, slope, member, states, log_load, log_floor):
    """As `sums`, of ratio(n) = base / n + slope; base and slope of shape (M,), >= 0 and not both 0."""
    bases: cython.double[:] = base
    slopes: cython.double[:] = slope
    rows: cython.longlong[:] = member
    counts: cython.longlong[:] = states
    loads: cython.double[:] = np.exp(log_load)
    floors: cython.double[:] = log_floor
    anchors, result = np.empty(len(log_load)), np.empty((2, len(log_load)))
    anchor: cython.double[::1] = anchors
    total: cython.double[:, ::1] = result
    inverse: cython.double[::1] = 1.0 / np.arange(1.0, states.max(initial=1) + 1.0)
    factor: cython.double[::1] = np.empty(len(inverse))
    first: cython.double
    more: cython.double
    i: cython.Py_ssize_t
    n: cython.Py_ssize_t
    with cython.nogil:
        for i in range(anchor.shape[0]):
            first, more = loads[i] * bases[rows[i]], loads[i] * slopes[rows[i]]
            for n in range(counts[rows[i]]):
                factor[n] = first * inverse[n] + more
            anchor[i] = floors[i]
            _add_up(
                cython.address(factor[0]),
                counts[rows[i]],
                cython.address(anchor[i]),
                cython.address(total[0, i]),
                cython.address(total[1, i]),
            )
    return anchors, result


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def _add_up(
    factor: cython.p_double,
    count: cython.Py_ssize_t,
    anchor: cython.p_double,
    plain_to: cython.p_double,
    moment_to: cython.p_double,
) -> cython.void:
    """Sum up one chain; `anchor` holds the floor and becomes the anchor.

    A weight is the one before it times its factor. Four states are taken at a time, so that their products do
    not wait for each other.
    """
    first: cython.double
    second: cython.double
    third: cython.double
    fourth: cython.double
    part: cython.double
    weight: cython.double = 1.0
    plain: cython.double = 0.0
    moment: cython.double = 0.0
    scale: cython.double = 0.0
    # So often the weight was multiplied by _SCALE since it last counted.
    below: cython.Py_ssize_t = 0
    n: cython.Py_ssize_t = 0
    while n < count:
        first = factor[n]
        if n + 4 <= count:
            second = first * factor[n + 1]
            third = second * factor[n + 2]
            fourth = second * (factor[n + 2] * factor[n + 3])
        else:
            second = first * factor[n + 1] if n + 1 < count else 0.0
            third = second * factor[n + 2] if n + 2 < count else 0.0
            fourth = 0.0
        if below == 0:
            part = (first + second) + (third + fourth)
            plain += weight * part
            moment += weight * (n * part + ((first + 2.0 * second) + (3.0 * third + 4.0 * fourth)))
        weight *= fourth
        n += 4
        if weight > _SCALE:
            weight /= _SCALE
            if below > 0:
                below -= 1
            else:
                plain /= _SCALE
                moment /= _SCALE
                scale += _LOG_SCALE
        elif weight < 1.0 / _SCALE:
            weight *= _SCALE
            below += 1
    anchor[0] = max(scale, anchor[0])
    scale = exp(scale - anchor[0])
    plain_to[0] = plain * scale
    moment_to[0] = moment * scale


def log_products(ratio, states):
    """Logarithm of the product of the first entries of each row, as many as `states` says, shape (M,)."""
    table: cython.double[:, ::1] = np.ascontiguousarray(ratio)
    counts: cython.longlong[:] = states
    result = np.empty(len(states))
    to: cython.double[::1] = result
    i: cython.Py_ssize_t
    with cython.nogil:
        for i in range(to.shape[0]):
            to[i] = _log_product(cython.address(table[i, 0]), counts[i])
    return result


def line_log_products(base, slope, states):
    """As `log_products`, of ratio(n) = base / n + slope."""
    bases: cython.double[:] = base
    slopes: cython.double[:] = slope
    counts: cython.longlong[:] = states
    inverse: cython.double[::1] = 1.0 / np.arange(1.0, states.max(initial=1) + 1.0)
    factor: cython.double[::1] = np.empty(len(inverse))
    result = np.empty(len(states))
    to: cython.double[::1] = result
    i: cython.Py_ssize_t
    n: cython.Py_ssize_t
    with cython.nogil:
        for i in range(to.shape[0]):
            for n in range(counts[i]):
                factor[n] = bases[i] * inverse[n] + slopes[i]
            to[i] = _log_product(cython.address(factor[0]), counts[i])
    return result


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def _log_product(factor: cython.p_double, count: cython.Py_ssize_t) -> cython.double:
    product: cython.double = 1.0
    total: cython.double = 0.0
    n: cython.Py_ssize_t
    for n in range(0, count - 3, 4):
        product *= (factor[n] * factor[n + 1]) * (factor[n + 2] * factor[n + 3])
        if not 1.0 / _SCALE < product < _SCALE:
            total += log(product)
            product = 1.0
    for n in range(count - count % 4, count):
        product *= factor[n]
    return total + log(product)

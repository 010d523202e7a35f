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
_SCALE = cython.declare(cython.double, 1e200)
_LOG_SCALE = cython.declare(cython.double, 200.0 * float(np.log(10.0)))


def sums(ratio, member, states, log_load, log_floor):
    """Sum up the weights w(n) = w(n - 1) x load x ratio(n), w(0) = 1, over n = 1..states.

    Parameters
    ----------
    ratio : (M, W) float
        > 0.
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
    loads: cython.double[:] = log_load
    floors: cython.double[:] = log_floor
    anchors, result = np.empty(len(log_load)), np.empty((2, len(log_load)))
    anchor: cython.double[::1] = anchors
    total: cython.double[:, ::1] = result
    i: cython.Py_ssize_t
    n: cython.Py_ssize_t
    row: cython.p_double
    load: cython.double
    weight: cython.double
    level: cython.Py_ssize_t
    plain: cython.double
    moment: cython.double
    scale: cython.double
    with cython.nogil:
        for i in range(anchor.shape[0]):
            load = exp(loads[i])
            weight, plain, moment, scale = 1.0, 0.0, 0.0, 0.0
            level = 0
            if counts[rows[i]] > 0:
                row = cython.address(table[rows[i], 0])
                for n in range(counts[rows[i]]):
                    weight *= load * row[n]
                    if weight > _SCALE:
                        weight /= _SCALE
                        level += 1
                        if level > 0:
                            plain /= _SCALE
                            moment /= _SCALE
                            scale += _LOG_SCALE
                            level = 0
                    elif weight < 1.0 / _SCALE:
                        weight *= _SCALE
                        level -= 1
                    if level == 0:
                        plain += weight
                        moment += (n + 1) * weight
            anchor[i] = max(scale, floors[i])
            scale = exp(scale - anchor[i])
            total[0, i] = plain * scale
            total[1, i] = moment * scale
    return anchors, result


def log_products(ratio, states):
    """Logarithm of the product of the first entries of each row, as many as `states` says, shape (M,)."""
    table: cython.double[:, ::1] = np.ascontiguousarray(ratio)
    counts: cython.longlong[:] = states
    result = np.empty(len(states))
    to: cython.double[::1] = result
    i: cython.Py_ssize_t
    n: cython.Py_ssize_t
    product: cython.double
    total: cython.double
    with cython.nogil:
        for i in range(to.shape[0]):
            product, total = 1.0, 0.0
            for n in range(counts[i]):
                product *= table[i, n]
                if not 1.0 / _SCALE < product < _SCALE:
                    total += log(product)
                    product = 1.0
            to[i] = total + log(product)
    return result

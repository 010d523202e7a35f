"""Demand that is exceeded only so often: a percentile of what arrives in a window of time.

Arrivals at rate r are counted in windows of length T. A count has mean r T and, with index of dispersion I,
variance I r T; I = 1 is a Poisson process, bursts have more. The count is taken as Gamma distributed with
these two moments (shape r T / I, scale I), which cannot fall below 0 and is close to the normal distribution
where r T / I is large. The demand to size for is its percentile over T, and never less than r.

References
----------
Cox and Lewis, The Statistical Analysis of Series of Events (1966), section 4.5 (index of dispersion).
Sriram and Whitt, Characterizing superposition arrival processes in packet multiplexers for voice and data,
IEEE JSAC 4 (1986), https://doi.org/10.1109/JSAC.1986.1146402 (what it does to queues).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from scipy.special import gammaincinv

if TYPE_CHECKING:
    from models.laws import FloatArray


def percentile_rps(
    rate_rps: FloatArray, percentile: FloatArray, dispersion: FloatArray, window_s: FloatArray
) -> FloatArray:
    """Return the rate that the count of a window exceeds with probability 1 - percentile.

    Parameters
    ----------
    rate_rps : (n,) float
        Mean rate, >= 0.
    percentile : (n,) float
        In (0, 1).
    dispersion : (n,) float
        I = variance over mean of the count in a window, > 0.
    window_s : (n,) float
        T, > 0.

    Returns
    -------
    (n,) float
        At least `rate_rps`, also where the count is mostly 0 and the percentile of it is less.
    """
    shape = rate_rps * window_s / dispersion
    quantile = gammaincinv(np.maximum(shape, np.finfo(float).tiny), percentile)
    result: FloatArray = np.maximum(quantile * dispersion / window_s, rate_rps)
    return result

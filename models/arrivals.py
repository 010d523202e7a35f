"""Requests for the simulator: arrival times and token counts, from a seed or from a trace.

Every function that draws takes a seed; the same seed gives the same requests.
"""

from __future__ import annotations

import gzip
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from pathlib import Path

    from models.laws import FloatArray, IntArray

TRACE_HEADER = "t_s,context_tokens,generated_tokens"


@dataclass(frozen=True)
class Requests:
    """Requests in order of arrival, every array of shape (n,).

    Attributes
    ----------
    arrival_s : float
        Finite, not decreasing.
    in_tokens, out_tokens : int
        Prompt and generated tokens, >= 1.

    Raises
    ------
    ValueError
        If the shapes differ, or a time or a count is out of its range.
    """

    arrival_s: FloatArray
    in_tokens: IntArray
    out_tokens: IntArray

    def __post_init__(self) -> None:
        if self.arrival_s.ndim != 1 or not (
            self.arrival_s.shape == self.in_tokens.shape == self.out_tokens.shape
        ):
            raise ValueError(
                "arrival_s, in_tokens and out_tokens must be one-dimensional and of equal length"
            )
        if not np.isfinite(self.arrival_s).all() or (np.diff(self.arrival_s) < 0).any():
            raise ValueError("arrival_s must be finite and must not decrease")
        for name in ("in_tokens", "out_tokens"):
            tokens = getattr(self, name)
            if not np.issubdtype(tokens.dtype, np.integer) or (tokens < 1).any():
                raise ValueError(f"{name} must be whole numbers of at least 1")

    def __len__(self) -> int:
        return len(self.arrival_s)


def read_trace(path: Path) -> Requests:
    """Read recorded requests from a CSV file, which may be compressed with gzip.

    Parameters
    ----------
    path : Path
        Columns `t_s`, `context_tokens` and `generated_tokens` in this order, with a header, sorted by time.

    Raises
    ------
    ValueError
        If the header or a row is not of that form.
    """
    with gzip.open(path, "rt") if path.suffix == ".gz" else path.open() as lines:
        header = next(lines, "").strip()
        if header != TRACE_HEADER:
            raise ValueError(f"{path} must begin with the line {TRACE_HEADER}, not {header!r}")
        time_s, in_tokens, out_tokens = np.loadtxt(lines, delimiter=",", ndmin=2, unpack=True)
    return Requests(time_s, in_tokens.astype(np.int64), out_tokens.astype(np.int64))


def deterministic_s(rate_rps: float, count: int) -> FloatArray:
    """Arrival times with equal gaps of 1 / rate; the first after one gap."""
    return np.arange(1.0, count + 1.0) / _positive("rate_rps", rate_rps)


def gamma_s(rate_rps: float, count: int, seed: int, burstiness: float = 1.0) -> FloatArray:
    """Arrival times with independent gaps of the Gamma distribution.

    Parameters
    ----------
    rate_rps : float
        > 0.
    count : int
    seed : int
    burstiness : float
        Squared coefficient of variation of the gaps, > 0, which is also the variance of the number of
        arrivals in a long window over its mean (index of dispersion). 1 is a Poisson process.

    Returns
    -------
    (count,) float
    """
    shape = 1.0 / _positive("burstiness", burstiness)
    scale_s = burstiness / _positive("rate_rps", rate_rps)
    return np.random.default_rng(seed).gamma(shape, scale_s, count).cumsum()


def poisson_s(rate_rps: float, count: int, seed: int) -> FloatArray:
    """Arrival times of a Poisson process."""
    return gamma_s(rate_rps, count, seed)


def at_rate_s(arrival_s: FloatArray, rate_rps: float) -> FloatArray:
    """Arrival times of a trace, stretched or compressed to a mean rate, from 0 on.

    The pattern stays, so the index of dispersion per number of requests stays as well.

    Parameters
    ----------
    arrival_s : (n,) float
        n >= 2, not decreasing, not all equal.
    rate_rps : float
        > 0; (n - 1) / (last - first) of the result.
    """
    from_start_s = arrival_s - arrival_s[0]
    scaled: FloatArray = from_start_s * (
        (len(arrival_s) - 1) / (from_start_s[-1] * _positive("rate_rps", rate_rps))
    )
    return scaled


def lognormal_tokens(mean: float, cov: float, count: int, seed: int, most: int | None = None) -> IntArray:
    """Token counts of a lognormal distribution, rounded to whole tokens of at least 1.

    Parameters
    ----------
    mean : float
        Of the distribution before rounding, > 0.
    cov : float
        Coefficient of variation before rounding, >= 0; 0 gives the rounded mean.
    count : int
    seed : int
    most : int, optional
        Larger draws are cut to this (a context window); the mean of the result is then lower.
    """
    variance = np.log1p(cov * cov)
    log_mean = np.log(_positive("mean", mean)) - variance / 2.0
    drawn = np.random.default_rng(seed).lognormal(log_mean, np.sqrt(variance), count)
    return np.clip(np.rint(drawn), 1, most).astype(np.int64)


def _positive(name: str, value: float) -> float:
    if not value > 0:
        raise ValueError(f"{name} must be above 0, not {value}")
    return value

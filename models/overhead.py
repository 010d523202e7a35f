"""The constant part of a measured TTFT: HTTP, tokenizer, scheduler.

Only a request that is alone shows it: with others the TTFT also holds the rest of their iterations, and in a
benchmark at fixed concurrency the burst of its start. Alone, the first token takes one iteration with the
prompt in it (as in `models.moments` and `models.replica`), so

    TTFT = overhead + c (alpha + epsilon (1 - (1 - f)^(a / c))) + w,
    w    = max(prefillFloor, (betaPrefill + gamma (c + 1) / 2) a)

with a input tokens in c chunks. The overhead is what the law's prefill leaves over, by least squares on the
relative error.
"""

from __future__ import annotations

from math import inf, nan, sqrt
from typing import TYPE_CHECKING

import numpy as np

from models.laws import TOKEN_BUDGET

if TYPE_CHECKING:
    from collections.abc import Mapping

    from models.laws import FloatArray
    from models.measurements import Measurements


def lone_ttft_ms(parameters: Mapping[str, float], in_tokens: FloatArray) -> FloatArray:
    """Return the TTFT of a request that is alone, without the overhead.

    Parameters
    ----------
    parameters : mapping
        Of law 3, by wire name, in milliseconds (per token).
    in_tokens : (n,) float
        >= 1.
    """
    get = parameters.get
    chunks = np.maximum(np.ceil(in_tokens / TOKEN_BUDGET), 1.0)
    touched = 1.0 - (1.0 - get("expertFraction", 0.0)) ** (in_tokens / chunks)
    token = get("betaPrefill", get("beta", 0.0)) + get("gamma", 0.0) * (chunks + 1.0) / 2.0
    own = np.maximum(get("prefillFloor", 0.0), token * in_tokens)
    result: FloatArray = chunks * (get("alpha", 0.0) + get("epsilon", 0.0) * touched) + own
    return result


def overhead_ms(parameters: Mapping[str, float], points: Measurements) -> tuple[float, float]:
    """Estimate the overhead of a fitted law 3.

    Parameters
    ----------
    parameters : mapping
        Of law 3, by wire name, in milliseconds (per token).
    points : Measurements
        Those with a TTFT and a concurrency of 1 count; not those that start together, whose TTFT the law
        itself is fitted to.

    Returns
    -------
    (float, float)
        The overhead, >= 0, and its standard error; NaN where no request was measured alone. The error is
        infinite for a single point, which cannot tell an overhead from a prefill that is slower.
    """
    alone = (points.concurrency <= 1.0) & (points.in_tokens >= 1.0) & ~points.together
    alone &= np.isfinite(points.ttft_ms)
    if not alone.any():
        return nan, nan
    measured = points.ttft_ms[alone]
    left = measured - lone_ttft_ms(parameters, points.in_tokens[alone])
    weight = measured**-2.0
    value = max(float(weight @ left / weight.sum()), 0.0)
    if len(left) == 1:
        return value, inf
    spread = float(weight @ (left - value) ** 2) / (len(left) - 1)
    return value, sqrt(spread / float(weight.sum()))

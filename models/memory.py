"""How many requests the KV cache of a replica holds."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

    from models.laws import IntArray

# Share of a card's memory for weights and KV cache: the default of vLLM's --gpu-memory-utilization.
MEMORY_SHARE = 0.9

# In place of a limit where there is none.
NO_LIMIT = np.iinfo(np.int64).max


def largest_batch(
    memory_bytes: ArrayLike,
    weight_bytes: ArrayLike,
    kv_bytes_per_token: ArrayLike,
    tokens: ArrayLike,
    *,
    memory_share: float = MEMORY_SHARE,
) -> IntArray:
    """Requests whose whole KV cache fits beside the weights.

    floor((memory x share - weights) / (bytes per token x tokens)). Each request counts with all its tokens,
    as at its end, so that none has to be preempted even if all end together; paged caches lose less than a
    block of 16 tokens a request beside (https://doi.org/10.1145/3600006.3613165).

    Parameters
    ----------
    memory_bytes : float
        Of all cards of the replica; 0 = not known, no limit.
    weight_bytes : float
        Of all weights, >= 0, one copy.
    kv_bytes_per_token : float
        Of all layers and of all copies that the replica keeps; 0 = not known, no limit.
    tokens : float
        Input and output tokens of a request, >= 0; 0 = no limit.
    memory_share : float
        Share of the memory for weights and KV cache, 0..1; activations and the engine take the rest.

    Returns
    -------
    int, shape of the arguments broadcast
        >= 0; 0 where the weights or one request do not fit; `NO_LIMIT` where there is none.
    """
    memory, weights, per_token, length = np.broadcast_arrays(
        *(np.asarray(x, dtype=np.float64) for x in (memory_bytes, weight_bytes, kv_bytes_per_token, tokens))
    )
    request = per_token * length
    limited = (memory > 0) & (request > 0)
    free = np.maximum(memory * memory_share - weights, 0.0)
    # A limit beyond any batch is none, and floats of that size are no integers.
    count = np.minimum(np.floor(free / np.where(limited, request, 1.0)), 2.0**53)
    return np.where(limited, count.astype(np.int64), NO_LIMIT)

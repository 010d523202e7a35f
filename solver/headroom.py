"""Demand with what is held in reserve: the headroom of a server's class, or of the optimizer's options."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from models.headroom import percentile_rps

if TYPE_CHECKING:
    from solver import schema
    from solver.milp import FloatArray


def with_headroom(system: schema.System, wire: tuple[schema.Server, ...], rate_rps: FloatArray) -> FloatArray:
    """Return the demand to plan for.

    Parameters
    ----------
    system : schema.System
    wire : tuple of schema.Server
        S of them.
    rate_rps : (S,) float
        Mean demand.
    """
    general = system.optimizer_data.optimizer.headroom
    of_class = {c.name: c.headroom or general for c in system.service_class_data.service_classes}
    if all(headroom is None for headroom in of_class.values()):
        return rate_rps
    planned = rate_rps.copy()
    asked = [(s, given) for s, server in enumerate(wire) if (given := of_class[server.class_name])]
    for s, headroom in asked:
        planned[s] *= headroom.factor or 1.0
    index = np.array([s for s, headroom in asked if headroom.percentile is not None], dtype=np.int64)
    if index.size:
        own = [headroom for _, headroom in asked if headroom.percentile is not None]
        loads = [wire[s].current_alloc.load for s in index]
        planned[index] = percentile_rps(
            rate_rps[index],
            np.array([headroom.percentile for headroom in own], dtype=np.float64),
            np.array(
                [x.arrival_dispersion or headroom.dispersion for x, headroom in zip(loads, own, strict=True)]
            ),
            np.array([headroom.window_s for headroom in own]),
        )
    return planned

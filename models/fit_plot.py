"""A picture of a fit: measured against predicted, by request shape."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from models.fit import predict
from models.measurements import check

if TYPE_CHECKING:
    from pathlib import Path

    from models.fit import Fit
    from models.measurements import Measurements

# Curves between the batch sizes measured.
CURVE_POINTS = 100


def plot(measured: Measurements, fitted: Fit, path: Path) -> None:
    """Draw the ITL over the batch, a curve and dots for each shape, and predicted over measured beside it.

    Parameters
    ----------
    measured : Measurements
    fitted : Fit
    path : Path
        Of the picture; its suffix is the format, such as ``.png`` or ``.svg``.

    Raises
    ------
    ImportError
        Matplotlib is not installed (``pip install fleetopt[fit]``).
    ValueError
        The format is not known.
    """
    # The only user of Matplotlib; the object interface needs no display and leaves no state behind.
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogLocator, NullFormatter, ScalarFormatter

    points, _ = check(measured)
    figure = Figure(figsize=(11.0, 5.0), layout="constrained")
    over_batch, diagonal = figure.subplots(1, 2)
    shapes = points.shape_index
    for shape in range(int(shapes.max()) + 1):
        some = points.take(shapes == shape)
        sizes = np.unique(some.concurrency)
        curve = some.take(np.zeros(CURVE_POINTS, dtype=np.int64))
        batches = np.geomspace(sizes[0], sizes[-1], CURVE_POINTS)
        curve = type(curve)(**{**vars(curve), "concurrency": batches})
        label = f"{some.in_tokens[0]:g} / {some.out_tokens[0]:g} tokens"
        (dots,) = over_batch.plot(some.concurrency, some.itl_ms, "o", label=label)
        over_batch.plot(batches, predict(fitted.form, fitted.parameters, curve)[0], color=dots.get_color())
        predicted_ms = predict(fitted.form, fitted.parameters, some)[0]
        diagonal.plot(some.itl_ms, predicted_ms, "o", color=dots.get_color())
    ends = [points.itl_ms.min(), points.itl_ms.max()]
    diagonal.plot(ends, ends, color="black", linewidth=1)
    over_batch.set(xscale="log", yscale="log", xlabel="requests in the batch", ylabel="ITL (ms)")
    diagonal.set(xscale="log", yscale="log", xlabel="measured ITL (ms)", ylabel="predicted ITL (ms)")
    for axis in (over_batch.xaxis, over_batch.yaxis, diagonal.xaxis, diagonal.yaxis):
        axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        axis.set_major_formatter(ScalarFormatter())
        axis.set_minor_formatter(NullFormatter())
    over_batch.legend()
    figure.suptitle(
        f"{fitted.form}: mean error {fitted.mean_error:.1%}, at unseen shapes {fitted.held_out_error:.1%}"
    )
    figure.savefig(path)

"""Least-squares estimation of a service-time law from measurements.

Every law is linear in its parameters, but for the share of experts that a token uses and the floor of the
prefill; those two are tried over a grid. For each trial, non-negative least squares on the relative error,
with weights that bound the influence of outliers, gives the other parameters. The form that predicts request
shapes it has not seen best is chosen.

Times are in milliseconds, as in the measurements and in the profile that a fit becomes.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import StrEnum
from math import nan
from typing import TYPE_CHECKING

import numpy as np
from scipy.optimize import nnls

from models.laws import TOKEN_BUDGET
from models.measurements import MS_PER_S, Measurements, check
from models.overhead import overhead_ms

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from models.laws import BoolArray, FloatArray

# Share of the experts that one token uses, tried where the model is a mixture of experts of unknown size.
EXPERT_SHARES = (0.01, 0.02, 0.03, 0.045, 0.07, 0.1, 0.15)

# What is expected of a parameter counts as much as a measurement of relative error 0.02 counts against a
# parameter that is off by its own value: it decides what the measurements leave open, and nothing else.
PRIOR_WEIGHT = 0.02

# Share of the peak arithmetic rate that prefill usually reaches.
FLOP_UTILISATION = 0.4

# Huber's constant, in standard deviations, and the least standard deviation assumed of a relative error.
HUBER = 1.5
LEAST_DEVIATION = 0.01
REWEIGHTINGS = 6

# Below these a fit says little: from two batch sizes alone the token time of a mixture of experts comes out
# 10 % too low between them.
ENOUGH_BATCH_SIZES = 4
ENOUGH_SHAPES = 3

# Of forms whose held-out errors differ by no more than this the one with the fewest parameters is chosen.
EQUAL_ERROR = 0.001

# Errors above these are worth a warning.
HIGH_ERROR = 0.1
HIGH_HELD_OUT_ERROR = 0.2

# As is an overhead whose standard error is above this share of it.
UNSURE_OVERHEAD = 0.5


class Form(StrEnum):
    """A law that can be fitted."""

    DECODE_LINEAR = "law 1"
    PREFILL_DECODE = "law 2"
    ITERATION = "law 3"
    PREFILL = "law 3 with prefill"
    EXPERTS = "law 3 with experts"
    EXPERTS_PREFILL = "law 3 with experts and prefill"


# Linear parameters of each form, by their wire names.
PARAMETERS = {
    Form.DECODE_LINEAR: ("alpha", "beta"),
    Form.PREFILL_DECODE: ("alpha", "beta", "gamma", "delta"),
    Form.ITERATION: ("alpha", "beta", "gamma"),
    Form.PREFILL: ("alpha", "beta", "gamma", "betaPrefill"),
    Form.EXPERTS: ("alpha", "beta", "gamma", "epsilon"),
    Form.EXPERTS_PREFILL: ("alpha", "beta", "gamma", "betaPrefill", "epsilon"),
}


@dataclass(frozen=True)
class Expectation:
    """What a data sheet says two parameters of law 3 should be about, in milliseconds.

    Attributes
    ----------
    gamma_ms : float
        Time to read one token of the KV cache, > 0.
    beta_prefill_ms : float
        Time to compute one token of a prompt, > 0.
    """

    gamma_ms: float
    beta_prefill_ms: float


@dataclass(frozen=True)
class Span:
    """Least and greatest value measured."""

    low: float
    high: float

    def __contains__(self, value: float) -> bool:
        return self.low <= value <= self.high


@dataclass(frozen=True)
class Candidate:
    """How well one form did: `Fit` has the same names."""

    form: Form
    mean_error: float
    held_out_error: float


@dataclass(frozen=True)
class Fit:
    """A fitted law, and how far to trust it.

    Attributes
    ----------
    form : Form
        The law.
    parameters : dict of str to float
        By wire name, milliseconds (per token); `expertFraction` is a share, 0..1.
    standard_errors : dict of str to float
        Of the linear parameters that are not 0, in the parameter's unit; NaN where no freedom is left.
    mean_error, worst_error : float
        Of |predicted / measured - 1| over every ITL, and the TTFT of batches that start together.
    held_out_error : float
        The mean error at request shapes that were left out, one after the other, with the same form; at batch
        sizes that were left out, where the batch varies for one shape only.
    ttft_error : float
        Mean error of the TTFT at all points; NaN where none was measured or the law has none.
    points : int
        Points fitted.
    concurrency, in_tokens, out_tokens : Span
        The range measured.
    candidates : tuple of Candidate
        Every form tried.
    warnings : tuple of str
    overhead_ms, overhead_error_ms : float
        Constant part of the TTFT and its standard error, from requests that were measured alone
        (`models.overhead`); NaN without any, and for laws 1 and 2.
    """

    form: Form
    parameters: dict[str, float]
    standard_errors: dict[str, float]
    mean_error: float
    worst_error: float
    held_out_error: float
    ttft_error: float
    points: int
    concurrency: Span
    in_tokens: Span
    out_tokens: Span
    candidates: tuple[Candidate, ...]
    warnings: tuple[str, ...]
    overhead_ms: float = nan
    overhead_error_ms: float = nan


def expectation(
    *,
    kv_bytes_per_token: float,
    active_parameters: float,
    bytes_per_s: float,
    flop_per_s: float,
    cards: int,
) -> Expectation:
    """Estimate the cost of a KV-cache token and of a prompt token from data sheets.

    A decode step reads the KV cache once: bytes / bandwidth. A prompt token takes two floating-point
    operations per active parameter (https://arxiv.org/abs/2001.08361, section 2.1), at `FLOP_UTILISATION` of
    the peak.

    Parameters
    ----------
    kv_bytes_per_token : float
        Of all layers.
    active_parameters : float
        Parameters that one token uses.
    bytes_per_s, flop_per_s : float
        Peak of one card, at the precision used.
    cards : int
        Cards that share the work.
    """
    return Expectation(
        gamma_ms=MS_PER_S * kv_bytes_per_token / (bytes_per_s * cards),
        beta_prefill_ms=MS_PER_S * 2.0 * active_parameters / (flop_per_s * FLOP_UTILISATION * cards),
    )


def predict(
    form: Form, parameters: Mapping[str, float], points: Measurements
) -> tuple[FloatArray, FloatArray]:
    """Mean ITL and TTFT of a law at the points' batch and shape.

    Laws 1 and 2 have the token time alpha + beta n, law 2 the prefill gamma + delta a n. Law 3, with c
    prefill chunks, f the share of experts a token uses and a prompt's own work w = max(prefillFloor,
    (betaPrefill + gamma (c + 1) / 2) a), betaPrefill = beta where absent::

        base(n) = alpha + epsilon (1 - (1 - f)^n)
        d       = (w + beta b + gamma b (a + (b + 1) / 2)) / (c + b)
        service = (c + b) (base(n) + n d)
        prefill = c (base(n) + (n - 1) d) + w
        ITL     = (service - prefill) / b
        TTFT    = prefill + ITL

    Batches that start together decode without another's prefill, and prefill at once: ITL = base(n) + n (beta
    + gamma (a + (b + 1) / 2)), TTFT = alpha + epsilon + max(prefillFloor, n (betaPrefill + gamma) a).

    Parameters
    ----------
    form : Form
    parameters : mapping
        By wire name; absent ones are 0, betaPrefill is beta.
    points : Measurements
        n points; only concurrency, shapes and `together` are read.

    Returns
    -------
    itl_ms, ttft_ms : (n,) float
        The TTFT without any wait; NaN for law 1.
    """
    n, a, b = points.concurrency, points.in_tokens, points.out_tokens
    get = parameters.get
    alpha, beta, gamma = get("alpha", 0.0), get("beta", 0.0), get("gamma", 0.0)
    if form is Form.DECODE_LINEAR:
        return alpha + beta * n, np.full(len(points), np.nan)
    if form is Form.PREFILL_DECODE:
        return alpha + beta * n, gamma + get("delta", 0.0) * a * n
    beta_prefill, floor = get("betaPrefill", beta), get("prefillFloor", 0.0)
    epsilon, share = get("epsilon", 0.0), get("expertFraction", 0.0)
    base = alpha + epsilon * (1.0 - (1.0 - share) ** n)
    token = beta + gamma * (a + (b + 1.0) / 2.0)

    c = prefill_chunks(a, b, n)
    own = np.where(a > 0, np.maximum(floor, (beta_prefill + gamma * (c + 1.0) / 2.0) * a), 0.0)
    d = (own + b * token) / (c + b)
    prefill = c * (base + (n - 1.0) * d) + own
    itl = ((c + b) * (base + n * d) - prefill) / b

    whole = alpha + epsilon * (share > 0) + np.maximum(floor, n * (beta_prefill + gamma) * a)
    return (
        np.where(points.together, base + n * token, itl),
        np.where(points.together, whole, prefill + itl),
    )


def prefill_chunks(in_tokens: FloatArray, out_tokens: FloatArray, batch: FloatArray) -> FloatArray:
    """Chunks of a prompt under the token budget, as `models.laws.prefill_chunks`, for points of any shape."""
    linear = out_tokens * TOKEN_BUDGET - in_tokens - batch * (in_tokens + out_tokens)
    root = (np.sqrt(linear**2 + 4.0 * TOKEN_BUDGET * in_tokens * out_tokens) - linear) / (2.0 * TOKEN_BUDGET)
    result: FloatArray = np.maximum(np.ceil(root - 1e-9), 1.0)
    return result


def fit(
    measured: Measurements,
    *,
    experts: bool = False,
    expert_fraction: float | None = None,
    expected: Expectation | None = None,
    forms: Sequence[Form] = tuple(Form),
) -> Fit:
    """Fit every form that the measurements allow, and return the one that predicts unseen shapes best.

    Parameters
    ----------
    measured : Measurements
        At least two batch sizes.
    experts : bool
        Whether the model is a mixture of experts: the forms with experts take the place of law 3 without.
    expert_fraction : float, optional
        Nominal share of experts that a token uses, 0..1; implies `experts`. None: that of `EXPERT_SHARES`
        which does best at shapes left out; it knows less of new shapes than the nominal one.
    expected : Expectation, optional
        Decides what the measurements leave open.
    forms : sequence of Form
        Forms to choose from.

    Raises
    ------
    MeasurementError
        See `models.measurements.check`.
    ValueError
        No form is left to fit.
    """
    points, warnings = check(measured)
    trials = list(_trials(points, forms, experts, expert_fraction))
    if not trials:
        raise ValueError("no form to fit")
    results = [_fit_form(form, share, points, expected) for form, share in trials]
    best: dict[Form, Fit] = {}
    for result in results:
        if result.form not in best or result.held_out_error < best[result.form].held_out_error:
            best[result.form] = result
    least = min(result.held_out_error for result in best.values())
    chosen = min(
        (result for result in best.values() if result.held_out_error <= least + EQUAL_ERROR),
        key=lambda result: len(PARAMETERS[result.form]),
    )
    return replace(
        chosen,
        candidates=tuple(Candidate(r.form, r.mean_error, r.held_out_error) for r in best.values()),
        warnings=(*warnings, *_warnings(chosen, points)),
    )


def outside(fitted: Fit, *, batch: float, in_tokens: float, out_tokens: float) -> list[str]:
    """Say where a use leaves the range that was measured.

    Parameters
    ----------
    fitted : Fit
    batch, in_tokens, out_tokens : float
        Largest batch and mean shape of the use.
    """
    return [
        f"{name} {value:g} is outside the measured range {span.low:g} to {span.high:g}"
        for name, value, span in (
            ("batch", batch, fitted.concurrency),
            ("input tokens", in_tokens, fitted.in_tokens),
            ("output tokens", out_tokens, fitted.out_tokens),
        )
        if value not in span
    ]


def _trials(
    points: Measurements, forms: Sequence[Form], experts: bool, expert_fraction: float | None
) -> Iterator[tuple[Form, float]]:
    """Forms to fit, with the share of experts.

    The forms with experts take the place of those of law 3 without. Law 1 says nothing of the TTFT and is
    left out where that was measured; law 2 needs it.
    """
    experts = experts or expert_fraction is not None
    has_ttft = np.isfinite(points.ttft_ms).sum() >= 2
    for form in forms:
        if form in (Form.DECODE_LINEAR, Form.PREFILL_DECODE):
            if has_ttft == (form is Form.PREFILL_DECODE):
                yield form, 0.0
        elif ("epsilon" in PARAMETERS[form]) == experts:
            for share in (
                (0.0,) if not experts else EXPERT_SHARES if expert_fraction is None else (expert_fraction,)
            ):
                yield form, share


def _fit_form(form: Form, share: float, points: Measurements, expected: Expectation | None) -> Fit:
    floors = _floored(form, points)
    solved = [_Problem(form, share, floored, points, expected) for floored in floors]
    problem = min(solved, key=lambda p: p.cost)
    error = problem.errors(problem.parameters, np.ones(len(points), dtype=bool))
    held = [problem.errors(problem.solve(kept), ~kept) for kept in _folds(points)]
    _, ttft_ms = predict(form, problem.parameters, points)
    ttft_error = np.abs(ttft_ms / points.ttft_ms - 1.0)
    known = ttft_error[np.isfinite(ttft_error)]
    is_law_3 = form not in (Form.DECODE_LINEAR, Form.PREFILL_DECODE)
    overhead, overhead_error = overhead_ms(problem.parameters, points) if is_law_3 else (nan, nan)
    return Fit(
        form=form,
        parameters=problem.parameters,
        standard_errors=problem.standard_errors(),
        mean_error=float(error.mean()),
        worst_error=float(error.max()),
        held_out_error=float(np.concatenate(held).mean()),
        ttft_error=float(known.mean()) if len(known) else float("nan"),
        points=len(points),
        concurrency=_span(points.concurrency),
        in_tokens=_span(points.in_tokens),
        out_tokens=_span(points.out_tokens),
        candidates=(),
        warnings=(),
        overhead_ms=overhead,
        overhead_error_ms=overhead_error,
    )


def _folds(points: Measurements) -> list[BoolArray]:
    """Points kept when one shape is left out; batch sizes are left out where that leaves nothing to fit.

    A shape is not left out if the others have but one batch size: how the time grows could not be told.
    """
    shape = points.shape_index
    size = np.unique(points.concurrency, return_inverse=True)[1]
    by_shape = [shape != group for group in range(int(shape.max()) + 1)]
    by_shape = [kept for kept in by_shape if len(np.unique(points.concurrency[kept])) > 1]
    return by_shape or [size != group for group in range(int(size.max()) + 1)]


def _floored(form: Form, points: Measurements) -> list[BoolArray]:
    """Sets of points whose prefill may be on the floor: those of the fewest prompt tokens, none first."""
    tokens = points.concurrency * points.in_tokens
    usable = points.together & np.isfinite(points.ttft_ms)
    none = np.zeros(len(points), dtype=bool)
    if "betaPrefill" not in PARAMETERS[form] or not usable.any():
        return [none]
    sizes = np.unique(tokens[usable])
    # Two sizes at least on the floor, or it is no floor, and two above, or there is no slope.
    return [none, *(usable & (tokens <= size) for size in sizes[1:-2])]


class _Problem:
    """One form's least-squares problem: rows of relative error, columns of linear parameters."""

    def __init__(
        self,
        form: Form,
        share: float,
        floored: BoolArray,
        points: Measurements,
        expected: Expectation | None,
    ) -> None:
        self.form, self.share, self.points = form, share, points
        self.names = [*PARAMETERS[form], *(["prefillFloor"] if floored.any() else [])]
        itl, ttft = self._columns(floored)
        self.itl_rows = itl / points.itl_ms[:, np.newaxis]
        self.ttft_rows = ttft / points.ttft_ms[:, np.newaxis]
        # The mean TTFT of a benchmark at fixed concurrency holds the burst of its start. Law 2 cannot do
        # without it, but all forms are judged by the same latencies.
        has_ttft = np.isfinite(points.ttft_ms) & (form is not Form.DECODE_LINEAR)
        self.ttft_judged = has_ttft & points.together
        self.ttft_used = has_ttft if form is Form.PREFILL_DECODE else self.ttft_judged
        self.prior = self._prior(expected)
        everything = np.ones(len(points), dtype=bool)
        self.parameters = self.solve(everything)
        self.cost = float((self.errors(self.parameters, everything) ** 2).sum())

    def _columns(self, floored: BoolArray) -> tuple[FloatArray, FloatArray]:
        """ITL and TTFT that one unit of each parameter adds; the law is linear in them."""
        itl, ttft = [], []
        for name in self.names:
            unit = {"expertFraction": self.share, "betaPrefill": 0.0, name: 1.0}
            if "betaPrefill" not in self.names and name == "beta":
                unit["betaPrefill"] = 1.0
            if name == "prefillFloor":
                itl.append(np.zeros(len(self.points)))
                ttft.append(floored.astype(np.float64))
                continue
            itl_ms, ttft_ms = predict(self.form, unit, self.points)
            itl.append(itl_ms)
            # On the floor a prompt's tokens cost nothing of their own.
            ttft.append(np.where(floored, float(name in ("alpha", "epsilon")), ttft_ms))
        return np.stack(itl, axis=1), np.stack(ttft, axis=1)

    def _prior(self, expected: Expectation | None) -> FloatArray:
        """Rows (parameter / expected) x weight, to equal the weight."""
        values = {}
        if expected is not None and self.form not in (Form.DECODE_LINEAR, Form.PREFILL_DECODE):
            values = {"gamma": expected.gamma_ms, "betaPrefill": expected.beta_prefill_ms}
        rows = [
            [PRIOR_WEIGHT / values[name] if name == target else 0.0 for name in self.names]
            for target in values
            if target in self.names
        ]
        return np.array(rows, dtype=np.float64).reshape(len(rows), len(self.names))

    def solve(self, kept: BoolArray) -> dict[str, float]:
        """Parameters from the points kept."""
        values, _ = self._solve(kept)
        parameters = dict(zip(self.names, values.tolist(), strict=True))
        if "epsilon" in parameters:
            parameters["expertFraction"] = self.share
        return parameters

    def _matrix(self, kept: BoolArray) -> FloatArray:
        return np.concatenate([self.itl_rows[kept], self.ttft_rows[kept & self.ttft_used]])

    def _solve(self, kept: BoolArray) -> tuple[FloatArray, FloatArray]:
        """Solution and the weights of its rows, by iteratively reweighted non-negative least squares."""
        rows = self._matrix(kept)
        weight = np.ones(len(rows))
        values = np.zeros(len(self.names))
        for _ in range(REWEIGHTINGS):
            matrix = np.concatenate([rows * weight[:, np.newaxis], self.prior])
            right = np.concatenate([weight, np.full(len(self.prior), PRIOR_WEIGHT)])
            scale = np.linalg.norm(matrix, axis=0)
            scale = np.where(scale > 0, scale, 1.0)
            values = nnls(matrix / scale, right)[0] / scale
            error = np.abs(rows @ values - 1.0)
            deviation = max(1.4826 * float(np.median(error)), LEAST_DEVIATION)
            weight = 1.0 / np.sqrt(np.maximum(error / (HUBER * deviation), 1.0))
        return values, weight

    def errors(self, parameters: Mapping[str, float], which: BoolArray) -> FloatArray:
        """|predicted / measured - 1| of the ITL, and of the TTFT of batches that start together."""
        points = self.points.take(which)
        itl_ms, ttft_ms = predict(self.form, parameters, points)
        used = self.ttft_judged[which]
        ratios = [itl_ms / points.itl_ms, ttft_ms[used] / points.ttft_ms[used]]
        return np.abs(np.concatenate(ratios) - 1.0)

    def standard_errors(self) -> dict[str, float]:
        """Standard errors of the parameters that are not 0, from the curvature at the solution."""
        everything = np.ones(len(self.points), dtype=bool)
        values, weight = self._solve(everything)
        free = np.flatnonzero(values > 0)
        matrix = (self._matrix(everything) * weight[:, np.newaxis])[:, free]
        freedom = len(matrix) - len(free)
        if freedom < 1:
            return {self.names[i]: float("nan") for i in free}
        variance = float(((matrix @ values[free] - weight) ** 2).sum()) / freedom
        prior = self.prior[:, free]
        # Scaled, for the parameters differ by orders of magnitude.
        information = (matrix.T @ matrix + prior.T @ prior) * np.outer(values[free], values[free])
        relative = np.sqrt(np.maximum(np.diag(np.linalg.pinv(information)) * variance, 0.0))
        return {self.names[i]: float(values[i] * r) for i, r in zip(free, relative, strict=True)}


def _span(values: FloatArray) -> Span:
    return Span(float(values.min()), float(values.max()))


def _warnings(fitted: Fit, points: Measurements) -> list[str]:
    """What makes a fit less sure than its error says."""
    sizes, shapes = len(np.unique(points.concurrency)), int(points.shape_index.max()) + 1
    warnings = []
    if sizes < ENOUGH_BATCH_SIZES:
        warnings.append(f"{sizes} batch sizes: measure at least {ENOUGH_BATCH_SIZES}")
    if shapes < ENOUGH_SHAPES:
        warnings.append(f"{shapes} request shapes: measure at least {ENOUGH_SHAPES}")
    if fitted.mean_error > HIGH_ERROR:
        warnings.append(
            f"the mean error is {fitted.mean_error:.0%}: no law describes these measurements well"
        )
    if fitted.held_out_error > HIGH_HELD_OUT_ERROR:
        warnings.append(
            f"the error at unseen points is {fitted.held_out_error:.0%}: use it only where measured"
        )
    if fitted.overhead_ms > 0 and fitted.overhead_error_ms > UNSURE_OVERHEAD * fitted.overhead_ms:
        warnings.append(
            f"the overhead of {fitted.overhead_ms:.3g} ms is unsure: measure prompts of several lengths at "
            "concurrency 1"
        )
    return warnings

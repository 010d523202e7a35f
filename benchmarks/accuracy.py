"""How far each performance model is from the iteration-level simulator, law by law.

For every profile, request shape, batch limit and load one replica is simulated, and the mean and 95th
percentile of the TTFT, the ITL, the saturation throughput and the rate at which given targets are met are
compared with what the laws say. Prints Markdown tables; with ``--write FILE`` it puts them between the marks
of that file.

    python benchmarks/accuracy.py [--write docs/accuracy.md] [--processes 2]
"""

from __future__ import annotations

import argparse
import itertools
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from models import capacity, moments
from models.arrivals import Requests, at_rate_s, gamma_s, lognormal_tokens, poisson_s, read_trace
from models.laws import Candidates, Law
from models.replica import IterationLaw, Limits, simulate

if TYPE_CHECKING:
    from collections.abc import Sequence

    from models.laws import FloatArray, IntArray

TRACES = Path(__file__).parent.parent / "data" / "azure2023"
BEGIN, END = "<!-- accuracy: begin -->", "<!-- accuracy: end -->"

# Fits of law 3 to measurements of NVIDIA's aiconfigurator (Apache-2.0): alpha ms, beta ms/token, gamma ms/KV
# token.
PROFILES_MS = {
    "Llama-3.1-8B, H100": (6.4767, 0.019951, 4.0955e-5),
    "Llama-3.1-70B FP8, 4 x H200": (7.6539, 0.041287, 9.5305e-6),
    "Qwen3-32B FP8, H100": (14.156, 0.073805, 2.1673e-5),
}
SHAPES = ((128, 1024), (512, 512), (1024, 128), (2048, 28), (4000, 300))
BATCHES = (1, 8, 64, 512)
LOADS = (0.1, 0.3, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95)
BURST_LOADS = (0.3, 0.6, 0.85)
IN_COV, OUT_COV = 1.0, 0.8
LONGEST = 32_000

REQUESTS, REQUESTS_NEAR_SATURATION = 20_000, 40_000
NEAR_SATURATION = 0.75
OVERLOAD = 1.3
SEED = 20231116

# The simulator's queue is unbounded; for the laws this is as good.
QUEUE = 1_000_000

# A law that sees a rate above its own capacity can be wrong by any factor; beyond this it does not matter.
WORST_ERROR = 10.0

LAWS = ("law 1", "law 2", "law 3", "moments")
FIGURES = ("ITL", "mean TTFT", "p95 TTFT", "capacity", "rate at TTFT")


@dataclass(frozen=True)
class Case:
    """One replica and its traffic, at several loads."""

    profile: str
    lengths: str
    shape: tuple[int, int]
    max_batch: int
    arrivals: str
    loads: tuple[float, ...]

    @property
    def burstiness(self) -> float:
        """Squared coefficient of variation of the gaps; for a trace it has to be measured."""
        return 1.0 if self.arrivals == "Poisson" else float(self.arrivals.removeprefix("Gamma "))

    @property
    def law(self) -> IterationLaw:
        """The time of an iteration."""
        return IterationLaw(*(1e-3 * value for value in PROFILES_MS[self.profile]))


@dataclass(frozen=True)
class Row:
    """Relative errors at one load, NaN where there is nothing to compare: (laws, figures)."""

    case: Case
    load: float
    errors: FloatArray


def main() -> None:
    formatter = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=formatter)
    parser.add_argument("--write", type=Path, help="file whose marked part is replaced")
    parser.add_argument("--processes", type=int, default=2)
    arguments = parser.parse_args()
    start = time.perf_counter()
    with ProcessPoolExecutor(arguments.processes) as pool:
        rows = list(itertools.chain.from_iterable(pool.map(study, cases(), chunksize=4)))
    text = report(rows)
    print(text)
    print(f"{len(rows)} simulated points in {time.perf_counter() - start:.0f} s")
    if arguments.write:
        before, rest = arguments.write.read_text().split(BEGIN)
        after = rest.split(END)[1]
        arguments.write.write_text(f"{before}{BEGIN}\n{text}\n{END}{after}")


def cases() -> list[Case]:
    """The grid: Poisson arrivals for everything; bursts and recorded arrivals for one profile."""
    shapes = [(kind, shape) for kind in ("fixed", "lognormal") for shape in SHAPES]
    shapes += [("Azure conversation", (0, 0)), ("Azure code", (0, 0))]
    grid = [
        Case(profile, kind, shape, batch, "Poisson", LOADS)
        for profile, (kind, shape), batch in itertools.product(PROFILES_MS, shapes, BATCHES)
    ]
    profile = list(PROFILES_MS)[1]
    for (kind, shape), batch, arrivals in itertools.product(shapes, BATCHES, ("Gamma 4", "Gamma 16")):
        grid.append(Case(profile, kind, shape, batch, arrivals, BURST_LOADS))
    for (kind, shape), batch in itertools.product(shapes[-2:], BATCHES):
        grid.append(Case(profile, kind, shape, batch, "recorded", BURST_LOADS))
    return grid


def study(case: Case) -> list[Row]:
    """Simulate a case at its loads and compare."""
    limits = Limits(case.max_batch)
    in_tokens, out_tokens, _ = tokens(case, REQUESTS)
    known = {name: Known.of(name, case, in_tokens, out_tokens, 1.0) for name in LAWS}
    overload_s = poisson_s(OVERLOAD * known["moments"].saturation_rps(), len(in_tokens), SEED + 2)
    overloaded = simulate(case.law, limits, Requests(overload_s, in_tokens, out_tokens))
    full = overloaded.summary(warmup=int(0.4 * len(in_tokens))).throughput_rps
    rows = []
    for load in case.loads:
        count = REQUESTS if load < NEAR_SATURATION else REQUESTS_NEAR_SATURATION
        rate = load * full
        in_tokens, out_tokens, recorded_s = tokens(case, count)
        if recorded_s is None:
            burstiness = case.burstiness
            arrival_s = gamma_s(rate, count, SEED + 2, burstiness)
        else:
            arrival_s = at_rate_s(recorded_s, rate)
            gaps_s = np.diff(arrival_s)
            burstiness = float(gaps_s.var() / gaps_s.mean() ** 2)
        outcome = simulate(case.law, limits, Requests(arrival_s, in_tokens, out_tokens))
        count = len(in_tokens)
        summary = outcome.summary(warmup=int(np.clip(3 * case.max_batch, 0.1 * count, 0.3 * count)))
        # The saturation throughput is one figure per case, so it counts once.
        once = full if load == case.loads[0] else np.nan
        ttft_s = summary.ttft_mean_s
        truth = np.array([summary.itl_mean_s, ttft_s, summary.ttft_p95_s, once, rate])
        errors = np.empty((len(LAWS), len(FIGURES)))
        for index, name in enumerate(LAWS):
            law = Known.of(name, case, in_tokens, out_tokens, burstiness)
            figures = [*law.latencies_s(rate), known[name].saturation_rps(), law.rate_rps(ttft_s)]
            errors[index] = np.minimum(np.array(figures) / truth - 1.0, WORST_ERROR)
        rows.append(Row(case, load, errors))
    return rows


@dataclass(frozen=True)
class Known:
    """What a law knows of a case: one candidate, and for the law on moments the details."""

    candidate: Candidates
    detail: moments.Detail | None

    @classmethod
    def of(cls, name: str, case: Case, in_tokens: IntArray, out_tokens: IntArray, burstiness: float) -> Known:
        """Take the means (and moments) of the tokens.

        Laws 1 and 2 get the parameters that measurements at this very shape would give them: a token takes
        alpha + (beta + gamma (a + b / 2)) n, a prompt alpha + (beta + gamma) a n.
        """
        law, a, b = case.law, float(in_tokens.mean()), float(out_tokens.mean())
        one, none = np.ones(1), np.zeros(1)
        candidate = Candidates(
            law=np.array([Law.ITERATION]),
            alpha_s=law.alpha_s * one,
            beta_s=law.beta_s * one,
            gamma_s=law.gamma_s * one,
            delta_s=none,
            beta_prefill_s=law.beta_s * one,
            prefill_floor_s=none,
            epsilon_s=none,
            expert_fraction=none,
            in_tokens=a * one,
            out_tokens=b * one,
            max_batch=np.array([case.max_batch]),
            max_queue=np.array([QUEUE]),
            target_itl_s=none,
            target_ttft_s=none,
            throughput_target=np.zeros(1, dtype=bool),
            percentile=0.95 * one,
            wait_factor=(burstiness + 1.0) / 2.0 * one,
        )
        if name == "moments":
            detail = moments.Detail(
                in_cov=in_tokens.std() / a * one,
                out_cov=out_tokens.std() / b * one,
                arrival_burstiness=burstiness * one,
                overhead_s=none,
            )
            return cls(candidate, detail)
        token_s = (law.beta_s + law.gamma_s * (a + b / 2.0)) * one
        if name == "law 2":
            prompt_s = (law.beta_s + law.gamma_s) * one
            candidate = replace(
                candidate,
                law=np.array([Law.PREFILL_DECODE]),
                beta_s=token_s,
                gamma_s=candidate.alpha_s,
                delta_s=prompt_s,
            )
        if name == "law 1":
            candidate = replace(
                candidate,
                law=np.array([Law.DECODE_LINEAR]),
                beta_s=token_s,
                gamma_s=none,
                in_tokens=none,
            )
        return cls(candidate, None)

    def latencies_s(self, rate_rps: float) -> tuple[float, float, float]:
        """ITL, mean TTFT and its 95th percentile at a rate."""
        rate = np.array([rate_rps])
        if self.detail is None:
            metrics = capacity.evaluate(self.candidate, rate)
        else:
            metrics = moments.evaluate(self.candidate, self.detail, rate)
        return metrics.itl_s[0], metrics.ttft_s[0], metrics.ttft_percentile_s[0]

    def saturation_rps(self) -> float:
        """The rate that cannot be exceeded."""
        return self._size(self.candidate) / capacity.HIGHEST_SHARE

    def rate_rps(self, ttft_s: float) -> float:
        """Largest rate at which a mean TTFT is met."""
        one = np.ones(1)
        return self._size(replace(self.candidate, target_ttft_s=ttft_s * one, percentile=np.nan * one))

    def _size(self, candidate: Candidates) -> float:
        sizing = capacity.size(candidate) if self.detail is None else moments.size(candidate, self.detail)
        return float(sizing.arrival_rps[0])


def tokens(case: Case, count: int) -> tuple[IntArray, IntArray, FloatArray | None]:
    """Token counts of a case, and the arrival times where they are recorded, too."""
    if case.lengths.startswith("Azure"):
        name = {"Azure conversation": "conv", "Azure code": "code"}[case.lengths]
        trace = read_trace(TRACES / f"azure2023_{name}_requests.csv.gz")
        if case.arrivals == "recorded":
            return trace.in_tokens, trace.out_tokens, trace.arrival_s
        drawn = np.random.default_rng(SEED).integers(0, len(trace), count)
        return trace.in_tokens[drawn], trace.out_tokens[drawn], None
    a, b = case.shape
    spread = 0.0 if case.lengths == "fixed" else 1.0
    in_tokens = lognormal_tokens(a, spread * IN_COV, count, SEED, LONGEST)
    return in_tokens, lognormal_tokens(b, spread * OUT_COV, count, SEED + 1, LONGEST), None


def report(rows: Sequence[Row]) -> str:
    """Markdown tables of the errors."""
    poisson = [row for row in rows if row.case.arrivals == "Poisson"]
    up_to_60 = [row for row in poisson if row.load < 0.65]
    up_to_90 = [row for row in poisson if 0.65 < row.load < 0.92]
    near_full = [row for row in poisson if row.load > 0.92]
    ranges = {"up to 60 %": up_to_60, "60-90 %": up_to_90, "95 %": near_full}
    lines = [f"### Poisson arrivals: mean (median) absolute error in %, {len(poisson)} points", ""]
    body = [(load, law, *_cells(part, law)) for load, part in ranges.items() for law in LAWS]
    lines += _table(("load", "law", *FIGURES), body)
    for title, key in (
        ("lengths", lambda row: row.case.lengths),
        ("batch limit", lambda row: row.case.max_batch),
        ("profile", lambda row: row.case.profile),
    ):
        lines += ["", f"### Law on moments by {title}, Poisson arrivals, mean (median)", ""]
        body = [
            (load, str(value), *_cells([row for row in part if key(row) == value], "moments"))
            for load, part in ranges.items()
            for value in dict.fromkeys(map(key, part))
        ]
        lines += _table(("load", title, *FIGURES), body)
    lines += ["", f"### Other arrivals ({list(PROFILES_MS)[1]}), mean (median)", ""]
    body = []
    for arrivals, load in itertools.product(("Gamma 4", "Gamma 16", "recorded"), BURST_LOADS):
        part = [row for row in rows if (row.case.arrivals, row.load) == (arrivals, load)]
        body += [(arrivals, f"{load:.0%}", law, *_cells(part, law)) for law in ("law 3", "moments")]
    lines += _table(("arrivals", "load", "law", *FIGURES), body)
    lines += ["", "### Law on moments: largest errors of the mean TTFT up to 90 %, Poisson arrivals", ""]
    worst = sorted(up_to_60 + up_to_90, key=lambda row: -abs(row.errors[-1, 1]))[:10]
    body = [
        (
            row.case.profile,
            row.case.lengths,
            "{}/{}".format(*row.case.shape) if any(row.case.shape) else "",
            str(row.case.max_batch),
            f"{row.load:.0%}",
            *(f"{100 * error:+.0f}" for error in row.errors[-1, :3]),
        )
        for row in worst
    ]
    lines += _table(("profile", "lengths", "tokens in/out", "N", "load", *FIGURES[:3]), body)
    return "\n".join(lines)


def mean_error(rows: Sequence[Row], law: str) -> list[float]:
    """Mean absolute relative error of each figure, NaN where no row has one."""
    return [float(errors.mean()) if len(errors) else np.nan for errors in _errors(rows, law)]


def _errors(rows: Sequence[Row], law: str) -> list[FloatArray]:
    errors = np.abs([row.errors[LAWS.index(law)] for row in rows]).T
    return [figure[~np.isnan(figure)] for figure in errors]


def _cells(rows: Sequence[Row], law: str) -> list[str]:
    return [
        f"{100 * errors.mean():.1f} ({100 * np.median(errors):.1f})" if len(errors) else ""
        for errors in _errors(rows, law)
    ]


def _table(header: Sequence[str], body: Sequence[Sequence[str]]) -> list[str]:
    rows = [header, ["---"] * len(header), *body]
    return ["| " + " | ".join(row) + " |" for row in rows]


if __name__ == "__main__":
    main()

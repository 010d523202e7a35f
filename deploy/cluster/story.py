"""The story that the demo tells, and what has to be seen for it to have come true.

::

    quiet -> rise -> fall -> fill -> rush -> relief
             replicas come and go   GPUs run short, priority decides

Pure: what is seen of the cluster and the time are arguments. A phase ends when everything that it tells is
seen at once, and fails when that takes too long.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

CHAT, CODER, DOCS = "qwen-32b", "coder-33b", "llama-8b"

# What the controller has seen of the arrivals before a phase can end; a queue that empties makes them noisy.
_ARRIVALS_WITHIN = 0.25


@dataclass(frozen=True)
class VariantSeen:
    """A variant at one time.

    Attributes
    ----------
    model : str
    desired : int or None
        What the controller decided; None: nothing yet.
    current, ready : int
        Replicas that its Deployment asks for, and those that serve.
    arrival_rps : float
        Of its model, as the controller sees it.
    reason, message : str
        Of its condition OptimizationReady.
    ttft_ms, itl_ms : mapping of str to float
        By "predicted" and "observed", where they are known.
    on_target : bool
        Whether what was observed is known, and within the targets of its class.
    """

    model: str
    desired: int | None
    current: int
    ready: int
    arrival_rps: float = 0.0
    reason: str = ""
    message: str = ""
    ttft_ms: Mapping[str, float] = field(default_factory=dict)
    itl_ms: Mapping[str, float] = field(default_factory=dict)
    on_target: bool = False


@dataclass(frozen=True)
class Seen:
    """The cluster at one time.

    Attributes
    ----------
    variants : mapping of str to VariantSeen
    gpus : mapping of str to (int, int)
        Accelerator -> cards that pods hold, cards that there are.
    cost_cents_per_h : float
        Of the cards that pods hold.
    """

    variants: Mapping[str, VariantSeen]
    gpus: Mapping[str, tuple[int, int]]
    cost_cents_per_h: float

    def ready(self, model: str) -> int:
        """Return the replicas of a model that serve."""
        return sum(variant.ready for variant in self.variants.values() if variant.model == model)

    def free(self, accelerator: str) -> int:
        """Return the cards of a type that nobody holds."""
        used, there = self.gpus[accelerator]
        return there - used


class Moment(NamedTuple):
    """What a check looks at: the cluster before the phase and now, and the least it served in between."""

    before: Seen
    now: Seen
    least_ready: Mapping[str, int]


@dataclass(frozen=True)
class Check:
    """Something that a phase tells."""

    text: str
    holds: Callable[[Moment], bool]


@dataclass(frozen=True)
class Phase:
    """A part of the story.

    Attributes
    ----------
    name, sentence : str
    rates_rps : mapping of str to float
        What arrives, by model.
    checks : tuple of Check
    """

    name: str
    sentence: str
    rates_rps: Mapping[str, float]
    checks: tuple[Check, ...]


def _grows(model: str) -> Check:
    return Check(f"more replicas of {model} serve", lambda m: m.now.ready(model) > m.before.ready(model))


def _shrinks(model: str) -> Check:
    return Check(f"fewer replicas of {model} are left", lambda m: m.now.ready(model) < m.before.ready(model))


def _more_of(name: str) -> Check:
    return Check(
        f"{name} has more replicas",
        lambda m: m.now.variants[name].ready > m.before.variants[name].ready,
    )


def _fewer_of(name: str) -> Check:
    return Check(
        f"{name} has fewer replicas",
        lambda m: m.now.variants[name].ready < m.before.variants[name].ready,
    )


def _never_less(model: str) -> Check:
    return Check(
        f"{model} never has less than before",
        lambda m: m.least_ready[model] >= m.before.ready(model),
    )


def _reasons(model: str | None, reason: str, text: str) -> Check:
    """Every variant of a model (None: of all) has this reason in its condition."""

    def holds(m: Moment) -> bool:
        return all(v.reason == reason for v in m.now.variants.values() if model in (None, v.model))

    return Check(text, holds)


_SERVED = _reasons(None, "OptimizationSucceeded", "all demand is served")


def _on_target(model: str) -> Check:
    return Check(
        f"requests of {model} meet its targets",
        lambda m: all(v.on_target for v in m.now.variants.values() if v.model == model),
    )


_ONE_EACH = Check(
    "one replica of every variant is left", lambda m: all(v.ready == 1 for v in m.now.variants.values())
)

_LITTLE = {CHAT: 4.0, CODER: 3.0, DOCS: 4.0}

STORY = (
    Phase("quiet", "A little traffic for every model.", _LITTLE, (_ONE_EACH, _SERVED)),
    Phase(
        "rise",
        "Load rises everywhere: replicas follow through the HPAs.",
        {CHAT: 27.0, CODER: 12.0, DOCS: 40.0},
        (_grows(CHAT), _grows(CODER), _grows(DOCS), _SERVED, _on_target(CHAT)),
    ),
    Phase(
        "fall",
        "Load falls: replicas go, after the scale-down window.",
        _LITTLE,
        (_shrinks(CHAT), _shrinks(CODER), _shrinks(DOCS), _ONE_EACH, _SERVED),
    ),
    Phase(
        "fill",
        "The Freemium model grows and takes H100s that nobody needs.",
        _LITTLE | {DOCS: 66.0},
        (_more_of("docs-h100"), _SERVED),
    ),
    Phase(
        "rush",
        "The Premium model needs those H100s: it gets them, and Freemium yields.",
        _LITTLE | {CHAT: 49.0, DOCS: 70.0},
        (
            _grows(CHAT),
            _never_less(CHAT),
            _on_target(CHAT),
            _reasons(CHAT, "OptimizationSucceeded", f"all demand of {CHAT} is served"),
            _fewer_of("docs-h100"),
            _more_of("docs-a100"),
            _reasons(DOCS, "DemandUnserved", f"the condition of {DOCS} says what is missing"),
            Check("no H100 and no A100 is free", lambda m: not (m.now.free("H100") or m.now.free("A100"))),
        ),
    ),
    Phase(
        "relief",
        "The rush is over: Freemium gets its H100s back, and the rest go.",
        _LITTLE | {DOCS: 40.0},
        (_shrinks(CHAT), _more_of("docs-h100"), _fewer_of("docs-a100"), _SERVED),
    ),
)


@dataclass(frozen=True)
class Told:
    """A phase that is over.

    Attributes
    ----------
    phase : Phase
    seconds : float
    seen : Seen
        At its end.
    missing : tuple of str
        What was not seen; empty: it came true.
    """

    phase: Phase
    seconds: float
    seen: Seen
    missing: tuple[str, ...]


class Story:
    """Which phase it is, from what is seen.

    Parameters
    ----------
    phases : sequence of Phase
    least_s, most_s : float
        How long a phase lasts: it can be read, and it ends.
    """

    def __init__(
        self, phases: Sequence[Phase] = STORY, *, least_s: float = 15.0, most_s: float = 240.0
    ) -> None:
        self.phases, self.told = tuple(phases), list[Told]()
        self._least_s, self._most_s = least_s, most_s
        self._since_s = 0.0
        self._before: Seen | None = None
        self._least_ready: dict[str, int] = {}

    @property
    def phase(self) -> Phase | None:
        """The phase that runs; None: the story is over, with its last phase or the first that failed."""
        has_failed = any(told.missing for told in self.told)
        return None if has_failed or len(self.told) == len(self.phases) else self.phases[len(self.told)]

    @property
    def came_true(self) -> bool:
        """Whether all of it was told and seen."""
        return len(self.told) == len(self.phases) and not self.told[-1].missing

    def look(self, seen: Seen, now_s: float) -> bool:
        """Take what is seen.

        Parameters
        ----------
        seen : Seen
        now_s : float
            On a clock that does not jump.

        Returns
        -------
        bool
            Whether another phase begins, whose rates are to be set, or the story is over.
        """
        phase = self.phase
        if phase is None:
            return False
        if self._before is None:
            self._begin(seen, now_s)
        self._least_ready = {model: min(n, seen.ready(model)) for model, n in self._least_ready.items()}
        elapsed_s = now_s - self._since_s
        missing = self.missing(seen)
        if elapsed_s < self._least_s or (missing and elapsed_s < self._most_s):
            return False
        self.told.append(Told(phase, elapsed_s, seen, missing))
        self._begin(seen, now_s)
        return True

    def _begin(self, seen: Seen, now_s: float) -> None:
        """Let a phase begin with this."""
        self._since_s, self._before = now_s, seen
        self._least_ready = {v.model: seen.ready(v.model) for v in seen.variants.values()}

    def missing(self, seen: Seen) -> tuple[str, ...]:
        """Return what the phase tells and is not seen yet."""
        phase = self.phase
        if phase is None or self._before is None:
            return ()
        moment = Moment(self._before, seen, self._least_ready)
        open_ends = [] if is_settled(seen, phase.rates_rps) else ["what was decided serves what arrives"]
        return (*open_ends, *(check.text for check in phase.checks if not check.holds(moment)))


def is_settled(seen: Seen, rates_rps: Mapping[str, float]) -> bool:
    """Whether the controller knows the load, and the cluster runs what it decided for it."""
    return all(
        variant.desired == variant.current == variant.ready
        and abs(variant.arrival_rps - rates_rps[variant.model]) <= _ARRIVALS_WITHIN * rates_rps[variant.model]
        for variant in seen.variants.values()
    )

"""What keeps a fleet from swinging: a window before it shrinks, step limits, a least gain.

Everything here is pure; `now_s` is an argument, on a clock that does not jump.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from controller.crd import VariantKey


class GroupKey(NamedTuple):
    """The variants that share a load: one model of one service class in one namespace."""

    namespace: str
    model_id: str
    service_class: str


class Recommendation(NamedTuple):
    """What the optimizer said about a variant at a time."""

    at_s: float
    replicas: int


class Tokens(NamedTuple):
    """Mean size of a request, and the coefficients of variation."""

    input: float
    output: float
    input_cov: float = 0.0
    output_cov: float = 0.0


@dataclass(frozen=True)
class Memory:
    """What one pass leaves to the next.

    Attributes
    ----------
    recommended : mapping of VariantKey to tuple of Recommendation
        Those of the scale-down window, oldest first.
    traffic_at_s : mapping of GroupKey to float
        When there was traffic last.
    tokens : mapping of GroupKey to Tokens
        As last seen.
    """

    recommended: Mapping[VariantKey, tuple[Recommendation, ...]] = field(default_factory=dict)
    traffic_at_s: Mapping[GroupKey, float] = field(default_factory=dict)
    tokens: Mapping[GroupKey, Tokens] = field(default_factory=dict)


@dataclass(frozen=True)
class Limits:
    """How fast a variant may change.

    Attributes
    ----------
    window_s : float
        It goes down to the highest recommendation of this time only, >= 0.
    max_step_up, max_step_down : int
        Replicas in one pass; 0 = any number.
    min_gain : float
        Share of its replicas that going down must save, 0..1.
    """

    window_s: float = 300.0
    max_step_up: int = 0
    max_step_down: int = 0
    min_gain: float = 0.0


@dataclass(frozen=True)
class Steadied:
    """A recommendation after the limits.

    Attributes
    ----------
    replicas : int
    why : str
        What made it differ from the recommendation; empty: it does not differ.
    """

    replicas: int
    why: str = ""


def remembered(
    before: tuple[Recommendation, ...], current: int, recommended: int, now_s: float, window_s: float
) -> tuple[Recommendation, ...]:
    """Add a recommendation to those of the window, and forget older ones.

    A recommendation holds until the next one, so the newest from before the window belongs to it: after an
    outage nothing goes before a whole window was watched. A variant that is seen for the first time is taken
    to have been right so far, so neither does it when a controller starts or takes over from another.

    Parameters
    ----------
    before : tuple of Recommendation
        Oldest first.
    current : int
        Replicas asked for now.
    recommended : int
    now_s, window_s : float
    """
    newest = Recommendation(now_s, recommended)
    if window_s <= 0:
        return (newest,)
    known = before or (Recommendation(now_s, current),)
    older = [entry for entry in known if now_s - entry.at_s >= window_s]
    within = [entry for entry in known if 0 <= now_s - entry.at_s < window_s]
    return (*older[-1:], *within, newest)


def steadied(current: int, history: tuple[Recommendation, ...], limits: Limits) -> Steadied:
    """Apply the limits to the newest recommendation.

    Going up is immediate up to the step limit: latency targets are at stake. Going down waits for the window.

    Parameters
    ----------
    current : int
        Replicas asked for now; pods on their way count.
    history : tuple of Recommendation
        Of `remembered`, with at least the newest.
    limits : Limits
    """
    recommended = history[-1].replicas
    if recommended >= current:
        most = current + limits.max_step_up if limits.max_step_up else recommended
        if recommended > most:
            return Steadied(most, f"at most {limits.max_step_up} more in one step, {recommended} wanted")
        return Steadied(recommended)
    highest = min(current, max(entry.replicas for entry in history))
    if highest > recommended:
        why = f"{recommended} wanted, {highest} were within the last {limits.window_s:g} s"
    else:
        why = ""
    if highest < current and current - highest < limits.min_gain * current:
        return Steadied(current, f"{recommended} wanted, which saves less than {limits.min_gain:.0%}")
    least = current - limits.max_step_down if limits.max_step_down else highest
    if highest < least:
        return Steadied(least, f"at most {limits.max_step_down} less in one step, {highest} wanted")
    return Steadied(highest, why)


@dataclass(frozen=True)
class Surplus:
    """Replicas of a variant that only the limits keep.

    Attributes
    ----------
    variant : VariantKey
    priority : int
        Of its class, 1 = most important.
    device : str
    cards : int
        Of one replica.
    replicas : int
        > 0.
    """

    variant: VariantKey
    priority: int
    device: str
    cards: int
    replicas: int


def released(surplus: Iterable[Surplus], short: Mapping[str, int]) -> dict[VariantKey, int]:
    """Find which of the surplus to give up at once, because others wait for its GPUs.

    The least important class gives first: a window that guards against swings must not keep a more important
    one waiting.

    Parameters
    ----------
    surplus : iterable of Surplus
    short : mapping of str to int
        Cards of each device that those who grow lack.

    Returns
    -------
    dict of VariantKey to int
        Replicas to give up, > 0.
    """
    left = dict(short)
    found: dict[VariantKey, int] = {}
    for entry in sorted(surplus, key=lambda entry: (-entry.priority, entry.variant)):
        given = min(entry.replicas, -(-left.get(entry.device, 0) // entry.cards))
        if given > 0:
            found[entry.variant] = given
            left[entry.device] -= given * entry.cards
    return found

"""What arrives at each group of variants: the traffic of every pod counted once, wherever it goes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from controller.crd import Hold
from controller.stability import Tokens
from solver import schema

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from controller.crd import VariantKey
    from controller.options import Member
    from controller.snapshot import Signal, Snapshot, Spread
    from controller.stability import GroupKey, Memory


@dataclass(frozen=True)
class Load:
    """What arrives at a group.

    Attributes
    ----------
    arrival_rpm : float
        Requests/min.
    input_tokens, output_tokens : float
        Means of a request; 0: not known, and nothing arrives.
    input_cov, output_cov : float
        Coefficients of variation of the tokens; 0: not known.
    ttft_ms, itl_ms : float
        As observed; 0: nothing was.
    is_busy : bool
        Whether there is traffic, or a demand for it.
    """

    arrival_rpm: float
    input_tokens: float
    output_tokens: float
    input_cov: float = 0.0
    output_cov: float = 0.0
    ttft_ms: float = 0.0
    itl_ms: float = 0.0
    is_busy: bool = False

    def on_the_wire(self, share: float = 1.0) -> schema.Load:
        """Return a share of it as the system JSON has it."""
        return schema.Load(
            arrival_rate_rpm=self.arrival_rpm * share,
            avg_in_tokens=self.input_tokens,
            avg_out_tokens=self.output_tokens,
            in_tokens_cov=self.input_cov or None,
            out_tokens_cov=self.output_cov or None,
        )


def read_loads(
    members: Mapping[GroupKey, Sequence[Member]], snapshot: Snapshot, memory: Memory
) -> dict[GroupKey, Load | Hold]:
    """Return the load of each group, or why it is not known.

    Parameters
    ----------
    members : mapping of GroupKey to sequence of Member
    snapshot : Snapshot
    memory : Memory
        Sizes of requests as last seen, for demand without any.
    """
    settings = snapshot.configuration.settings
    shares = _Shares(members, snapshot)
    seen: dict[GroupKey, list[tuple[Signal, float]]] = {key: [] for key in members}
    stale: set[GroupKey] = set()
    for signal in snapshot.traffic.signals:
        for key, share in shares.of_signal(signal).items():
            if signal.age_s > settings.metrics_stale_s:
                stale.add(key)
            else:
                seen[key].append((signal, share))
    counted: dict[GroupKey, float] = {}
    queued: dict[GroupKey, float] = {}
    growth: dict[GroupKey, float] = {}
    for demand in snapshot.traffic.demands:
        for key, share in shares.of_model(demand.model, demand.namespace).items():
            queued[key] = queued.get(key, 0.0) + demand.queued * share
            growth[key] = growth.get(key, 0.0) + demand.growth_rpm * share
            if demand.arrival_rpm is not None:
                counted[key] = counted.get(key, 0.0) + demand.arrival_rpm * share
    spreads: dict[GroupKey, Spread] = {}
    # Series without a namespace are about all of them; those of the group's own come later and win.
    for spread in sorted(snapshot.traffic.spreads, key=lambda spread: spread.namespace):
        spreads |= dict.fromkeys(shares.of_model(spread.model, spread.namespace), spread)

    loads: dict[GroupKey, Load | Hold] = {}
    for key, its in members.items():
        is_down = not any(member.workload.ready for member in its)
        waiting = queued.get(key, 0.0) if is_down else 0.0
        is_known = bool(seen[key]) or key in counted or waiting > 0
        if not is_known and any(member.workload.replicas for member in its):
            loads[key] = _no_metrics(key, key in stale)
            continue
        woken = (key.namespace, key.model_id) in snapshot.woken
        default = Tokens(settings.default_input_tokens, settings.default_output_tokens)
        loads[key] = _load(
            seen[key],
            counted.get(key),
            waiting,
            growth.get(key, 0.0),
            spreads.get(key),
            memory.tokens.get(key, default),
            woken,
        )
    return loads


def read_own_loads(snapshot: Snapshot) -> dict[VariantKey, Load]:
    """Return what the pods of each variant were seen to do, as far as series are told apart by pod."""
    owner = _owners(snapshot)
    seen: dict[VariantKey, list[tuple[Signal, float]]] = {}
    for signal in snapshot.traffic.signals:
        key = owner.get((signal.namespace, signal.pod))
        if key is not None and signal.age_s <= snapshot.configuration.settings.metrics_stale_s:
            seen.setdefault(key, []).append((signal, 1.0))
    return {
        key: _load(signals, None, 0.0, 0.0, None, Tokens(0.0, 0.0), woken=False)
        for key, signals in seen.items()
    }


def _owners(snapshot: Snapshot) -> dict[tuple[str, str], VariantKey]:
    """Variant of each pod, by namespace and name."""
    return {
        (key.namespace, pod): key for key, workload in snapshot.workloads.items() for pod in workload.pods
    }


class _Shares:
    """Who gets what share of a series: the group of its pod, else those of its model by ready replicas."""

    def __init__(self, members: Mapping[GroupKey, Sequence[Member]], snapshot: Snapshot) -> None:
        self._group_of = {member.variant.key: key for key, its in members.items() for member in its}
        self._owner = _owners(snapshot)
        self._foreign = snapshot.foreign_pods
        self._ready: dict[str, dict[GroupKey, int]] = {}
        for key, its in members.items():
            ready = sum(member.workload.ready for member in its)
            self._ready.setdefault(key.model_id, {})[key] = ready

    def of_signal(self, signal: Signal) -> dict[GroupKey, float]:
        pod = (signal.namespace, signal.pod)
        if pod in self._foreign:
            return {}
        if pod in self._owner:
            group = self._group_of.get(self._owner[pod])
            return {group: 1.0} if group is not None and group.model_id == signal.model else {}
        return self.of_model(signal.model, signal.namespace)

    def of_model(self, model: str, namespace: str) -> dict[GroupKey, float]:
        ready = {
            key: count
            for key, count in self._ready.get(model, {}).items()
            if namespace in ("", key.namespace)
        }
        total = sum(ready.values())
        return {key: count / total if total else 1 / len(ready) for key, count in ready.items()}


def _no_metrics(key: GroupKey, is_stale: bool) -> Hold:
    if is_stale:
        return Hold(
            "MetricsAvailable",
            "MetricsStale",
            f"the vllm series of {key.model_id} in {key.namespace} are old: are its pods still scraped?",
        )
    return Hold(
        "MetricsAvailable",
        "MetricsMissing",
        f"Prometheus has no vllm series with model_name {key.model_id} for {key.namespace}: "
        "are its pods scraped, and is it served under this name?",
    )


def _first_known(value: float | None, fallback: float) -> float:
    return fallback if value is None else value


def _load(
    seen: Sequence[tuple[Signal, float]],
    counted_rpm: float | None,
    queued: float,
    held_back_growth_rpm: float,
    spread: Spread | None,
    tokens: Tokens,
    woken: bool,
) -> Load:
    """Add up what was seen.

    Arrivals are completions and the growth of what is in flight or held back by the gateway: under overload
    completions alone stop at what the replicas can do. Requests that wait for a group without replicas are
    taken as those of a minute.
    """
    served_rpm = sum((signal.completed_rpm + signal.growth_rpm) * share for signal, share in seen)
    observed_rpm = max(served_rpm + held_back_growth_rpm, 0.0)
    arrival_rpm = max(observed_rpm if counted_rpm is None else counted_rpm, queued)
    in_flight = sum(signal.in_flight * share for signal, share in seen)

    def mean(values: Iterable[tuple[float | None, float]], fallback: float) -> float:
        known = [(value, weight) for value, weight in values if value is not None and weight > 0]
        total = sum(weight for _, weight in known)
        return sum(value * weight for value, weight in known) / total if total else fallback

    weighted = [(signal, signal.completed_rpm * share) for signal, share in seen]
    fallback = tokens if arrival_rpm > 0 else Tokens(0.0, 0.0)
    return Load(
        arrival_rpm=arrival_rpm,
        input_tokens=mean(((s.input_tokens, w) for s, w in weighted), fallback.input),
        output_tokens=mean(((s.output_tokens, w) for s, w in weighted), fallback.output),
        input_cov=_first_known(spread.input_cov if spread else None, tokens.input_cov),
        output_cov=_first_known(spread.output_cov if spread else None, tokens.output_cov),
        ttft_ms=mean(((s.ttft_ms, w) for s, w in weighted), 0.0),
        itl_ms=mean(((s.itl_ms, w) for s, w in weighted), 0.0),
        is_busy=arrival_rpm > 0 or in_flight > 0 or woken,
    )

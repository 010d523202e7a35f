"""What to change, and why (`plan`, pure), and the change itself (`apply`).

::

    Analysis, Response -> share of each variant -> limits of stability -> Decision
    Decision -> gauges -> scale -> status -> event -> owner, each only where something is new

A server that is absent from an answer keeps what it runs, and so does every variant of a pass that failed.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Protocol

from controller.answer import check_answer, remedy_of, shares_of
from controller.crd import (
    ACTUATE_ANNOTATION,
    WINDOW_ANNOTATION,
    Condition,
    CurrentAlloc,
    DesiredAlloc,
    Hold,
    Status,
    owner_reference,
    status_patch,
)
from controller.errors import ClusterError
from controller.options import option_of
from controller.settings import parse_duration
from controller.stability import (
    Limits,
    Memory,
    Recommendation,
    Steadied,
    Surplus,
    released,
    remembered,
    steadied,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from controller.analyze import Analysis, Group
    from controller.answer import Share
    from controller.crd import Variant, VariantKey
    from controller.settings import Settings
    from controller.snapshot import Snapshot, Workload
    from solver.schema import Response, Unserved


@dataclass(frozen=True)
class Decision:
    """What a pass says about a variant.

    Attributes
    ----------
    variant : Variant
    current : int or None
        Replicas asked for now; None: its target was not found.
    desired : int or None
        Replicas it is to have; None: it is held.
    accelerator : str
        What they run on; empty: not known.
    recommended : int or None
        What the optimizer said, before the limits of stability; None: nothing.
    why : str
        In words.
    status : Status
    scale : bool
        Whether the controller scales the target itself.
    owner : mapping or None
        The owner reference that the variant is to get; None: it stays as it is.
    """

    variant: Variant
    current: int | None
    desired: int | None
    accelerator: str
    recommended: int | None
    why: str
    status: Status
    scale: bool = False
    owner: Mapping[str, Any] | None = None

    @property
    def changes(self) -> bool:
        """Whether the target is to have another number of replicas than it has."""
        return self.desired is not None and self.desired != self.current

    @property
    def held_reason(self) -> str:
        """Reason of the condition that holds the variant; empty: it is not held."""
        if self.desired is not None:
            return ""
        return next((c.reason for c in self.status.conditions if not c.status), "")


@dataclass(frozen=True)
class Plan:
    """What a pass decides.

    Attributes
    ----------
    decisions : tuple of Decision
        One for each variant, by key.
    memory : Memory
        For the next pass.
    """

    decisions: tuple[Decision, ...]
    memory: Memory


def plan(analysis: Analysis, response: Response | None, snapshot: Snapshot, now_s: float) -> Plan:
    """Decide what each variant is to have.

    Parameters
    ----------
    analysis : Analysis
    response : Response or None
        The optimizer's answer to `Analysis.system`; None where that is None.
    snapshot : Snapshot
        That the analysis is of.
    now_s : float
        On a clock that does not jump.

    Raises
    ------
    OptimizerError
        When the answer names what the system does not have, or takes GPUs that are not there.
    """
    if response is not None:
        check_answer(analysis, response)
    held = dict(analysis.holds)
    steps: list[_Step] = []
    unserved = {entry.server: entry for entry in response.report.unserved} if response else {}
    for group in analysis.groups:
        allocation = response.allocations.get(group.server) if response else None
        shortage = unserved.get(group.server)
        shares = shares_of(group, allocation, shortage, snapshot.workloads, analysis.accelerators)
        if isinstance(shares, Hold):
            held |= dict.fromkeys((variant.key for variant in group.variants), shares)
            continue
        remedy = remedy_of(group, allocation, shortage) if shortage is not None else []
        steps += [
            _step(variant, group, shares[variant.key], shortage, remedy, analysis, snapshot, now_s)
            for variant in group.variants
        ]
    decisions = {step.variant.key: _decision(step, analysis, snapshot) for step in _eased(steps, analysis)}
    recommended = {step.variant.key: step.history for step in steps}
    for variant in snapshot.variants:
        if variant.key in held:
            before = analysis.memory.recommended.get(variant.key)
            if before:
                recommended[variant.key] = before
            decisions[variant.key] = _held(variant, held[variant.key], analysis, snapshot)
    return Plan(
        tuple(_owned(decisions[variant.key], snapshot) for variant in snapshot.variants),
        replace(analysis.memory, recommended=recommended),
    )


def _owned(decision: Decision, snapshot: Snapshot) -> Decision:
    """Let the target own the variant where the settings want it."""
    workload = snapshot.workloads.get(decision.variant.key)
    if workload is None or not snapshot.configuration.settings.owner_reference:
        return decision
    return replace(decision, owner=owner_reference(decision.variant, workload.uid))


def hold_all(snapshot: Snapshot, memory: Memory, hold: Hold) -> Plan:
    """Return the plan of a pass that failed: everything stays, and every variant says why."""
    decisions = tuple(
        Decision(
            variant=variant,
            current=_replicas(snapshot.workloads.get(variant.key)),
            desired=None,
            accelerator="",
            recommended=None,
            why=hold.message,
            status=Status(conditions=_conditions_of(hold)),
        )
        for variant in snapshot.variants
    )
    return Plan(decisions, memory)


@dataclass(frozen=True)
class _Step:
    """What was found for a variant, before it is put into words.

    `wanted` is what the optimizer said, `steady` what the limits of stability make of it.
    """

    variant: Variant
    group: Group
    workload: Workload
    share: Share
    wanted: int
    steady: Steadied
    history: tuple[Recommendation, ...]
    shortage: Unserved | None
    remedy: Sequence[str]


def _step(
    variant: Variant,
    group: Group,
    share: Share,
    shortage: Unserved | None,
    remedy: Sequence[str],
    analysis: Analysis,
    snapshot: Snapshot,
    now_s: float,
) -> _Step:
    workload = snapshot.workloads[variant.key]
    wanted = max(share.replicas, variant.min_replicas or 0)
    limits = _limits(variant, snapshot.configuration.settings)
    before = analysis.memory.recommended.get(variant.key, ())
    history = remembered(before, workload.replicas, wanted, now_s, limits.window_s)
    steady = steadied(workload.replicas, history, limits)
    return _Step(variant, group, workload, share, wanted, steady, history, shortage, remedy)


def _eased(steps: Sequence[_Step], analysis: Analysis) -> list[_Step]:
    """Let go of what only the limits keep where others are to grow on GPUs that are not there."""
    system = analysis.system
    if system is None or system.optimizer_data.optimizer.unlimited:
        return list(steps)
    there = {entry.type: entry.count for entry in system.capacity_data.count}
    taken: Counter[str] = Counter()
    growing: Counter[str] = Counter()
    surplus: list[Surplus] = []
    for step in steps:
        if step.share.option is None:
            continue
        device, cards = step.share.option.device, step.share.option.profile.acc_count
        replicas = step.steady.replicas
        taken[device] += cards * replicas
        growing[device] += cards * max(replicas - step.workload.replicas, 0)
        if replicas > step.wanted:
            priority = step.group.service_class.priority
            surplus.append(Surplus(step.variant.key, priority, device, cards, replicas - step.wanted))
    short = {device: min(growing[device], taken[device] - there.get(device, 0)) for device in taken}
    given = released(surplus, short)
    return [replace(step, steady=_less(step, given.get(step.variant.key, 0))) for step in steps]


def _less(step: _Step, replicas: int) -> Steadied:
    if not replicas:
        return step.steady
    return Steadied(
        step.steady.replicas - replicas, f"{step.wanted} wanted, and others need the GPUs of {replicas}"
    )


def _decision(step: _Step, analysis: Analysis, snapshot: Snapshot) -> Decision:
    variant, group, workload, steady = step.variant, step.group, step.workload, step.steady
    option = step.share.option
    accelerator = option.accelerator if option else analysis.accelerators.get(variant.key, "")

    words = [f"{step.wanted} replicas for {group.load.arrival_rpm:.1f} requests/min of {variant.model_id}"]
    if len(group.variants) > 1:
        words[0] += f", shared by {len(group.variants)} variants"
    if steady.why:
        words.append(f"{steady.replicas} now: {steady.why}")
    if step.shortage is not None:
        shortage = step.shortage
        words.append(f"{shortage.unserved_share:.0%} of the demand is not served: {shortage.detail}")
        words += step.remedy
    words += analysis.notes.get(variant.key, ())
    why = "; ".join(words)
    optimized = (
        Condition("OptimizationReady", True, "OptimizationSucceeded", why)
        if step.shortage is None
        else Condition("OptimizationReady", True, "DemandUnserved", why)
    )
    return Decision(
        variant=variant,
        current=workload.replicas,
        desired=steady.replicas,
        accelerator=accelerator,
        recommended=step.wanted,
        why=why,
        status=Status(
            conditions=(
                Condition(
                    "MetricsAvailable", True, "MetricsFound", f"traffic of {variant.model_id} is known"
                ),
                optimized,
                _target_found(variant),
                analysis.inventory,
            ),
            current=_current(variant, group, analysis, workload),
            desired=DesiredAlloc(accelerator, steady.replicas),
            applied=True,
        ),
        scale=_scales(variant, snapshot.configuration.settings),
    )


def _held(variant: Variant, hold: Hold, analysis: Analysis, snapshot: Snapshot) -> Decision:
    conditions = _conditions_of(hold)
    if hold.condition != "TargetResolved":
        conditions = (*conditions, _target_found(variant))
    return Decision(
        variant=variant,
        current=_replicas(snapshot.workloads.get(variant.key)),
        desired=None,
        accelerator=analysis.accelerators.get(variant.key, ""),
        recommended=None,
        why=hold.message,
        status=Status(conditions=(*conditions, analysis.inventory)),
    )


def _conditions_of(hold: Hold) -> tuple[Condition, ...]:
    """Return the condition of a hold; without metrics or a target there is no optimization either."""
    its_own = Condition(hold.condition, False, hold.reason, hold.message)
    if hold.condition == "MetricsAvailable":
        return its_own, Condition("OptimizationReady", False, "MetricsUnavailable", hold.message)
    if hold.condition == "TargetResolved":
        return its_own, Condition("OptimizationReady", False, "OptimizationFailed", hold.message)
    return (its_own,)


def _target_found(variant: Variant) -> Condition:
    return Condition("TargetResolved", True, "TargetFound", f"{variant.target} is there")


def _replicas(workload: Workload | None) -> int | None:
    return workload.replicas if workload else None


def _current(variant: Variant, group: Group, analysis: Analysis, workload: Workload) -> CurrentAlloc | None:
    accelerator = analysis.accelerators.get(variant.key, "")
    option = option_of(group.options, variant.key, accelerator)
    if option is None:
        return None
    own = group.own_loads.get(variant.key, group.load)
    return CurrentAlloc(
        accelerator=accelerator,
        replicas=workload.replicas,
        max_batch=workload.max_num_seqs or option.profile.max_batch_size,
        cost_cents_per_h=option.cost_cents_per_h * workload.replicas,
        itl_ms=own.itl_ms,
        ttft_ms=own.ttft_ms,
        arrival_rate_rpm=group.load.arrival_rpm,
        input_tokens=group.load.input_tokens,
        output_tokens=group.load.output_tokens,
    )


def _limits(variant: Variant, settings: Settings) -> Limits:
    window_s = settings.scale_down_window_s
    if WINDOW_ANNOTATION in variant.annotations:
        try:
            window_s = parse_duration(variant.annotations[WINDOW_ANNOTATION])
        except ValueError:
            # One bad annotation costs that annotation alone.
            window_s = settings.scale_down_window_s
    return Limits(window_s, settings.max_step_up, settings.max_step_down, settings.min_gain)


def _scales(variant: Variant, settings: Settings) -> bool:
    return variant.annotations.get(ACTUATE_ANNOTATION, settings.actuate) == "scale"


# --- the change itself ---


class Writer(Protocol):
    """What `apply` needs of a cluster; each raises ClusterError."""

    def patch_status(self, variant: Variant, patch: dict[str, object]) -> None:
        """Bring a variant's status up to date."""

    def scale(self, variant: Variant, replicas: int) -> None:
        """Set the replicas of a variant's target."""

    def own(self, variant: Variant, reference: Mapping[str, Any]) -> None:
        """Give a variant an owner."""

    def record(self, variant: Variant, reason: str, message: str) -> None:
        """Say in an Event what was changed."""


class Publisher(Protocol):
    """Where autoscalers read what is desired."""

    def publish(self, decisions: Sequence[Decision]) -> None:
        """Show the decisions of a pass, and nothing of variants that are gone."""


@dataclass(frozen=True)
class Failure:
    """A write that did not succeed; the next pass tries again."""

    variant: VariantKey
    message: str


def apply(
    decisions: Iterable[Decision], writer: Writer, publisher: Publisher, now: str
) -> tuple[Failure, ...]:
    """Carry out the decisions of a pass. A write that fails costs that variant alone.

    Parameters
    ----------
    decisions : iterable of Decision
        All of the pass.
    writer : Writer
    publisher : Publisher
    now : str
        RFC 3339 time for what changes.

    Returns
    -------
    tuple of Failure
    """
    decided = tuple(decisions)
    publisher.publish(decided)
    failures: list[Failure] = []
    for decision in decided:
        variant = decision.variant
        for act in _acts(decision, writer, now):
            try:
                act()
            except ClusterError as error:
                failures.append(Failure(variant.key, str(error)))
                break
    return tuple(failures)


def _acts(decision: Decision, writer: Writer, now: str) -> list[Callable[[], None]]:
    """Return the writes that a decision needs, in order."""
    variant, desired = decision.variant, decision.desired
    acts: list[Callable[[], None]] = []
    if decision.changes and decision.scale and desired is not None:
        acts.append(lambda: writer.scale(variant, desired))
    patch = status_patch(variant, decision.status, now)
    if patch is not None:
        acts.append(lambda: writer.patch_status(variant, patch))
    told = (variant.status.get("desiredOptimizedAlloc") or {}).get("numReplicas")
    if decision.changes and desired != told:
        message = f"{decision.current} -> {desired} replicas: {decision.why}"
        acts.append(lambda: writer.record(variant, "Scaling", message))
    owner = decision.owner
    if owner is not None:
        # Last: it changes the object that the status was decided for.
        acts.append(lambda: writer.own(variant, owner))
    return acts

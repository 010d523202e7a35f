"""From an answer to what each variant is to have, and what is written."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import pytest
from controller_tools import (
    CLASSES,
    MODEL,
    NAMESPACE,
    key,
    law1,
    nodes,
    profile,
    signal,
    snapshot,
    solved,
    va,
)

from controller.actuate import Decision, Plan, apply, hold_all, plan
from controller.analyze import Analysis, analyze
from controller.answer import split
from controller.crd import Hold, Variant, VariantKey, parse_variant
from controller.errors import ClusterError, OptimizerError
from controller.settings import Settings
from controller.snapshot import Snapshot, Workload
from controller.stability import Memory
from solver import schema

NOW = "2026-01-01T00:00:00Z"
FREE = Settings(scale_down_window_s=0.0)


def planned(seen: Snapshot, memory: Memory | None = None, now_s: float = 100.0) -> Plan:
    """A pass with the real solver."""
    analysis = analyze(seen, memory or Memory(), now_s)
    return plan(analysis, solved(analysis.system) if analysis.system else None, seen, now_s)


def decision(found: Plan, name: str = "vllm") -> Decision:
    return next(d for d in found.decisions if d.variant.key.name == name)


def reasons(of: Decision) -> dict[str, str]:
    return {c.type: f"{c.status} {c.reason}" for c in of.status.conditions}


def test_status_shows_what_the_variants_own_pods_were_seen_to_do() -> None:
    pods = {"on-a100": "a1", "on-h100": "h1"}
    seen = snapshot(
        va("on-a100", label="A100"),
        va("on-h100", label="H100"),
        profiles=(law1("A100"), law1("H100")),
        signals=(signal(20.0, pod="a1", itl_ms=21.0), signal(10.0, pod="h1", itl_ms=9.0)),
        workloads={name: Workload(1, 1, pods=frozenset({pod})) for name, pod in pods.items()},
    )
    found = planned(seen)
    shown = [decision(found, name).status.current for name in pods]
    assert [current and current.itl_ms for current in shown] == [21.0, 9.0]
    # The load is that of the model, which they share.
    assert [current and current.arrival_rate_rpm for current in shown] == [30.0, 30.0]


@pytest.mark.parametrize(
    ("rate_rpm", "tokens", "replicas"), [(40.0, 178.0, 2), (37.5, 279.0, 3), (1.33, 0.0, 1)]
)
def test_published_steps_of_the_reference(rate_rpm: float, tokens: float, replicas: int) -> None:
    """The quickstart log: 2 replicas at 40 requests/min of 178 tokens, 3 at 37.5 of 279, 1 without tokens."""
    seen = snapshot(
        va(profiles=[profile("A100")]),
        signals=(signal(rate_rpm, output_tokens=tokens, input_tokens=0.0),),
        workloads={"vllm": Workload(1, 1)},
    )
    found = decision(planned(seen))
    assert (found.current, found.desired, found.accelerator) == (1, replicas, "A100")
    assert reasons(found) == {
        "MetricsAvailable": "True MetricsFound",
        "OptimizationReady": "True OptimizationSucceeded",
        "TargetResolved": "True TargetFound",
        "InventoryKnown": "True NodesRead",
    }


def two(h100: int, a100: int, rate_rpm: float, **spec: object) -> Snapshot:
    return snapshot(
        va("on-a100", label="A100", **spec),  # type: ignore[arg-type]
        va("on-h100", label="H100"),
        profiles=(law1("A100"), law1("H100")),
        signals=(signal(rate_rpm),),
        workloads={"on-a100": Workload(1, 1), "on-h100": Workload(1, 1)},
        inventory=nodes(A100=a100, H100=h100),
        settings=FREE,
    )


def test_two_variants_share_a_load_that_one_type_cannot_carry() -> None:
    # One replica carries 25.3 requests/min; 120 need 5, and there are only 3 of the cheaper type.
    found = planned(two(h100=3, a100=3, rate_rpm=120.0))
    assert (decision(found, "on-a100").desired, decision(found, "on-h100").desired) == (3, 2)
    assert "shared by 2 variants" in decision(found, "on-a100").why


@pytest.mark.parametrize("labels", [("A100", "H100"), ("H100", "A100"), ("A100", "A100"), ("", "")])
def test_variants_that_may_run_anywhere_are_each_on_one_kind(labels: tuple[str, str]) -> None:
    """Neither type can carry the load alone; a variant that runs on one of them stays there."""
    anywhere = {"inference.optimization/keep-accelerator": "false"}
    both = [profile("A100"), profile("H100")]
    seen = snapshot(
        *(
            va(name, label=label, profiles=both, annotations=anywhere)
            for name, label in zip("ab", labels, strict=True)
        ),
        signals=(signal(120.0),),
        workloads={"a": Workload(2, 2), "b": Workload(2, 2)},
        inventory=nodes(A100=3, H100=3),
        settings=FREE,
    )
    found = planned(seen).decisions
    assert {d.accelerator: d.desired for d in found} == {"A100": 3, "H100": 2}
    if set(labels) == {"A100", "H100"}:
        assert tuple(d.accelerator for d in found) == labels


def test_maximum_of_a_variant_is_never_passed() -> None:
    found = planned(two(h100=3, a100=8, rate_rpm=120.0, maxReplicas=2))
    assert (decision(found, "on-a100").desired, decision(found, "on-h100").desired) == (2, 3)


def test_minimum_of_a_variant_holds_whatever_the_answer_prefers() -> None:
    seen = snapshot(
        va("on-a100", label="A100"),
        va("on-h100", label="H100", minReplicas=2),
        profiles=(law1("A100"), law1("H100")),
        signals=(signal(40.0),),
        settings=FREE,
    )
    found = planned(seen)
    # Two replicas are enough: those of the minimum count towards the load.
    assert (decision(found, "on-h100").desired, decision(found, "on-a100").desired) == (2, 0)


def test_groups_of_one_model_have_their_own_accelerators() -> None:
    """One namespace has A100 alone and another H100 alone, whichever is cheaper."""
    seen = snapshot(
        va("a", namespace="one", label="A100"),
        va("h", namespace="two", label="H100"),
        profiles=(law1("A100"), law1("H100")),
        signals=(signal(40.0, namespace="one"), signal(40.0, namespace="two")),
        settings=FREE,
    )
    found = planned(seen)
    assert {d.variant.key.name: (d.accelerator, d.desired) for d in found.decisions} == {
        "a": ("A100", 2),
        "h": ("H100", 2),
    }


def test_lower_class_yields_when_gpus_are_short() -> None:
    low = "granite-13b"
    signals = (signal(70.0), signal(70.0, model=low))
    both = (law1("A100"), law1("A100", low))
    documents = (va("high"), va("low", model=low))
    seen = snapshot(*documents, profiles=both, signals=signals, inventory=nodes(A100=4), settings=FREE)
    found = planned(seen)

    assert (decision(found, "high").desired, decision(found, "low").desired) == (3, 1)
    assert reasons(decision(found, "low"))["OptimizationReady"] == "True DemandUnserved"
    assert "of the demand is not served" in decision(found, "low").why


def test_window_of_a_lower_class_keeps_no_more_important_one_waiting() -> None:
    """Low has four replicas and needs one now; high needs three cards, and there are five."""
    low = "granite-13b"
    both = (law1("A100"), law1("A100", low))
    workloads = {"high": Workload(1, 1), "low": Workload(4, 4)}

    def found(high_rpm: float, cards: int) -> tuple[int | None, int | None, str]:
        seen = snapshot(
            va("high"),
            va("low", model=low),
            profiles=both,
            signals=(signal(high_rpm), signal(20.0, model=low)),
            inventory=nodes(A100=cards),
            workloads=workloads,
            settings=Settings(scale_down_window_s=300.0),
        )
        passed = planned(seen)
        return decision(passed, "high").desired, decision(passed, "low").desired, decision(passed, "low").why

    *given, why = found(high_rpm=70.0, cards=5)
    assert given == [3, 2]
    assert "2 now: 1 wanted, and others need the GPUs of 2" in why
    # With room for both, or where nobody grows, the window holds.
    assert found(high_rpm=70.0, cards=7)[:2] == (3, 4)
    assert found(high_rpm=20.0, cards=4)[:2] == (1, 4)


def test_demand_that_replicas_cannot_serve_is_held_with_the_target_named() -> None:
    tight = {"a.yaml": f"name: Tight\ndata:\n- {{model: {MODEL}, slo-tpot: 5}}\n"}
    seen = snapshot(
        va(profiles=[profile("A100")]),
        signals=(signal(40.0),),
        classes=tight,
        workloads={"vllm": Workload(4, 4)},
    )
    found = decision(planned(seen))
    assert (found.desired, found.held_reason) == (None, "TargetsUnreachable")
    assert found.why.startswith("no batch size meets the targets: A100: ITL is 20.99 ms")
    assert "the target is 5 ms" in found.why


def test_cards_that_would_serve_the_rest_are_named() -> None:
    # One replica carries 25.3 requests/min; 120 need 5, and there are 3.
    seen = snapshot(
        va(profiles=[profile("A100")]), signals=(signal(120.0),), inventory=nodes(A100=3), settings=FREE
    )
    found = decision(planned(seen))
    assert (found.desired, reasons(found)["OptimizationReady"]) == (3, "True DemandUnserved")
    assert "37% of the demand is not served" in found.why
    assert "; 2 more A100 would serve it" in found.why

    # Replicas of two cards each.
    two_cards = {"vllm": Workload(1, 1, gpus_per_replica=2)}
    seen = replace(seen, inventory=nodes(A100=6), workloads={key(): two_cards["vllm"]})
    assert "; 4 more A100 (2 on a node) would serve it" in decision(planned(seen)).why

    # Without a single card nothing tells what a replica does; the answer says what is needed.
    why = decision(planned(replace(seen, inventory=nodes(A100=0)))).why
    assert "its whole demand needs 10 NVIDIA-A100-PCIE-80GB (0 left by the others)" in why


def cards_more(why: str, accelerator: str) -> int:
    """Of an accelerator, as a condition says; 0: it names none."""
    found = re.search(rf"(\d+) more {accelerator}\b", why)
    return int(found[1]) if found else 0


@pytest.mark.parametrize("least", [0, 6])
@pytest.mark.parametrize("rate_rpm", [75.0, 75.9, 76.0, 101.2, 101.3, 333.0])
def test_so_many_cards_as_are_named_would_serve_the_rest_and_one_less_would_not(
    rate_rpm: float, least: int
) -> None:
    def why(cards: int) -> str:
        variant = va(profiles=[profile("A100")], minReplicas=least)
        seen = snapshot(variant, signals=(signal(rate_rpm),), inventory=nodes(A100=cards), settings=FREE)
        return decision(planned(seen)).why

    more = cards_more(why(2), "A100")
    assert more > 0
    assert "would serve" not in why(2 + more)
    assert "not served" in why(2 + more - 1)


def test_either_kind_of_cards_that_would_serve_the_rest_of_a_mix() -> None:
    def why(h100: int, a100: int, **spec: int) -> str:
        return decision(planned(two(h100=h100, a100=a100, rate_rpm=200.0, **spec)), "on-a100").why

    said = why(2, 3)
    assert (cards_more(said, "A100"), cards_more(said, "H100")) == (3, 3)
    assert "would serve" not in why(2, 6)
    assert "would serve" not in why(5, 3)
    # More of a kind than its variants may have are no help.
    assert why(2, 3, maxReplicas=5).endswith("; 3 more H100 would serve it")


def test_maximum_that_is_too_low_is_named() -> None:
    seen = snapshot(va(profiles=[profile("A100")], maxReplicas=2), signals=(signal(120.0),), settings=FREE)
    found = decision(planned(seen))
    assert found.desired == 2
    assert "a larger maxReplicas would serve it" in found.why


def test_server_absent_from_an_answer_keeps_what_it_runs() -> None:
    """Theirs scales it to zero."""
    seen = snapshot(
        va(profiles=[profile("A100")]), signals=(signal(40.0),), workloads={"vllm": Workload(3, 3)}
    )
    analysis = analyze(seen, Memory(), 100.0)
    assert analysis.system is not None
    answer = solved(analysis.system).model_copy(update={"allocations": {}})
    found = decision(plan(analysis, answer, seen, 100.0))
    assert (found.desired, found.held_reason, found.changes) == (None, "NotInAnswer", False)


def test_gpus_of_a_server_absent_from_an_answer_are_not_given_to_others() -> None:
    """It keeps its replicas, so an answer that gives their GPUs away cannot be followed."""
    low = "granite-13b"
    seen = snapshot(
        va("a", profiles=[profile("A100")]),
        va("b", model=low, profiles=[profile("A100")]),
        signals=(signal(70.0), signal(70.0, model=low, output_tokens=178.0)),
        workloads={"a": Workload(1, 1), "b": Workload(3, 3)},
        inventory=nodes(A100=6),
        settings=FREE,
    )
    analysis = analyze(seen, Memory(), 100.0)
    assert analysis.system is not None
    answer = solved(analysis.system)
    own = {name: one for name, one in answer.allocations.items() if name.startswith("a:")}
    followed = plan(analysis, answer.model_copy(update={"allocations": own}), seen, 100.0)
    assert decision(followed, "a").desired == 3
    assert decision(followed, "b").held_reason == "NotInAnswer"

    fewer = replace(seen, inventory=nodes(A100=5))
    analysis = analyze(fewer, Memory(), 100.0)
    with pytest.raises(OptimizerError, match=r"takes 3 .* there are 2 without the 3 of servers"):
        plan(analysis, answer.model_copy(update={"allocations": own}), fewer, 100.0)


def answered(seen: Snapshot, accelerator: str, replicas: int) -> tuple[Analysis, schema.Response]:
    """A real answer with another allocation in it."""
    analysis = analyze(seen, Memory(), 100.0)
    assert analysis.system is not None
    response = solved(analysis.system)
    (name,) = response.allocations
    other = response.allocations[name].model_copy(
        update={"accelerator": accelerator, "num_replicas": replicas, "parts": None}
    )
    return analysis, response.model_copy(update={"allocations": {name: other}})


@pytest.mark.parametrize(
    ("accelerator", "replicas", "message"),
    [
        ("A100", 9, "takes 9 NVIDIA-A100-PCIE-80GB, there are 8"),
        ("A100", -1, "-1 replicas"),
        ("B200", 1, "on 'B200'"),
    ],
)
def test_answer_that_cannot_be_acted_on_is_refused(accelerator: str, replicas: int, message: str) -> None:
    seen = snapshot(va(profiles=[profile("A100")]), signals=(signal(40.0),))
    analysis, response = answered(seen, accelerator, replicas)
    with pytest.raises(OptimizerError, match=message):
        plan(analysis, response, seen, 100.0)


def test_answer_may_take_more_than_was_counted_when_gpus_are_unlimited() -> None:
    seen = snapshot(
        va(profiles=[profile("A100")]), signals=(signal(40.0),), settings=Settings(unlimited=True)
    )
    analysis, response = answered(seen, "A100", 99)
    assert decision(plan(analysis, response, seen, 100.0)).desired == 99


def test_scale_down_waits_for_the_window_and_its_annotation_wins() -> None:
    annotations = {"inference.optimization/scale-down-window": "0s"}
    five = {"vllm": Workload(5, 5)}
    waiting = snapshot(va(profiles=[profile("A100")]), signals=(signal(40.0),), workloads=five)
    found = decision(planned(waiting))
    assert (found.recommended, found.desired) == (2, 5)
    assert "2 wanted, 5 were within the last 300 s" in found.why

    at_once = snapshot(
        va(profiles=[profile("A100")], annotations=annotations), signals=(signal(40.0),), workloads=five
    )
    assert decision(planned(at_once)).desired == 2

    annotations["inference.optimization/scale-down-window"] = "soon"
    bad = snapshot(
        va(profiles=[profile("A100")], annotations=annotations), signals=(signal(40.0),), workloads=five
    )
    assert decision(planned(bad)).desired == 5


def test_scale_down_comes_once_the_window_is_over() -> None:
    seen = snapshot(
        va(profiles=[profile("A100")]), signals=(signal(40.0),), workloads={"vllm": Workload(5, 5)}
    )
    memory, desired = Memory(), []
    for minute in range(7):
        found = planned(seen, memory, 60.0 * minute)
        memory = found.memory
        desired.append(decision(found).desired)
    assert desired == [5, 5, 5, 5, 5, 2, 2]


def test_held_variant_keeps_its_memory_and_others_go_on() -> None:
    documents = [va("a", profiles=[profile("A100")]), va("b", model="unlisted", profiles=[profile("A100")])]
    found = planned(snapshot(*documents, signals=(signal(40.0),)))
    assert decision(found, "a").desired == 2
    assert decision(found, "b").held_reason == "ClassMissing"
    assert set(found.memory.recommended) == {key("a")}


def test_failed_pass_holds_everything_and_says_why() -> None:
    """Theirs is silent when Prometheus is out."""
    seen = snapshot(va("a"), va("b"))
    memory = Memory()
    found = hold_all(seen, memory, Hold("MetricsAvailable", "PrometheusError", "refused"))
    assert found.memory is memory
    assert [d.changes for d in found.decisions] == [False, False]
    for held in found.decisions:
        assert reasons(held) == {
            "MetricsAvailable": "False PrometheusError",
            "OptimizationReady": "False MetricsUnavailable",
        }


@pytest.mark.parametrize(
    ("replicas", "limits", "running", "expected"),
    [
        (4, [(None, None), (None, None)], [1, 3], [1, 3]),
        (6, [(None, None), (None, None)], [1, 3], [3, 3]),
        (2, [(None, None), (None, None)], [1, 3], [1, 1]),
        (5, [(0, 2), (1, None)], [0, 0], [2, 3]),
        (9, [(0, 2), (0, 3)], [0, 0], [2, 3]),
        (1, [(0, None), (1, None)], [5, 1], [0, 1]),
        (0, [(None, None), (None, None)], [2, 2], [0, 0]),
    ],
)
def test_variants_of_one_kind_share_replicas(
    replicas: int, limits: list[tuple[int | None, int | None]], running: list[int], expected: list[int]
) -> None:
    variants = [
        parse_variant(va(f"v{i}", **{"minReplicas": low, "maxReplicas": high}))
        for i, (low, high) in enumerate(limits)
    ]
    workloads = {v.key: Workload(count, count) for v, count in zip(variants, running, strict=True)}
    assert split(replicas, variants, workloads) == expected


def test_free_variant_that_is_offered_several_kinds_is_held() -> None:
    seen = snapshot(
        va(label="", profiles=[profile("A100"), profile("H100")]), signals=(signal(40.0),), settings=FREE
    )
    analysis, response = answered(seen, "A100", 2)
    (name,) = response.allocations
    parts = [schema.AllocPart(accelerator=acc, num_replicas=1) for acc in ("A100", "H100")]
    mixed = response.allocations[name].model_copy(update={"parts": parts})
    response = response.model_copy(update={"allocations": {name: mixed}})
    assert decision(plan(analysis, response, seen, 100.0)).held_reason == "MixedAnswer"


# --- apply ---


@dataclass
class Cluster:
    """A writer that remembers, and fails for the variants it is told to."""

    failing: frozenset[VariantKey] = frozenset()
    writes: list[tuple[str, VariantKey, object]] = field(default_factory=list)
    published: list[tuple[Decision, ...]] = field(default_factory=list)

    def _write(self, kind: str, variant: Variant, what: object) -> None:
        if variant.key in self.failing:
            raise ClusterError(f"{variant.key}: conflict")
        self.writes.append((kind, variant.key, what))

    def patch_status(self, variant: Variant, patch: dict[str, object]) -> None:
        self._write("status", variant, patch)

    def scale(self, variant: Variant, replicas: int) -> None:
        self._write("scale", variant, replicas)

    def own(self, variant: Variant, reference: Mapping[str, object]) -> None:
        self._write("owner", variant, reference)

    def record(self, variant: Variant, reason: str, message: str) -> None:
        self._write("event", variant, message)

    def publish(self, decisions: Sequence[Decision]) -> None:
        self.published.append(tuple(decisions))


def kinds(cluster: Cluster) -> list[str]:
    return [kind for kind, _, _ in cluster.writes]


def test_by_default_the_target_is_left_to_the_autoscaler() -> None:
    cluster = Cluster()
    found = planned(snapshot(va(profiles=[profile("A100")]), signals=(signal(40.0),)))
    assert apply(found.decisions, cluster, cluster, NOW) == ()
    assert kinds(cluster) == ["status", "event"]
    assert cluster.published == [found.decisions]


@pytest.mark.parametrize("how", ["setting", "annotation"])
def test_the_controller_scales_where_asked_to(how: str) -> None:
    annotations = {"inference.optimization/actuate": "scale"} if how == "annotation" else None
    settings = Settings(actuate="scale") if how == "setting" else None
    cluster = Cluster()
    seen = snapshot(
        va(profiles=[profile("A100")], annotations=annotations), signals=(signal(40.0),), settings=settings
    )
    apply(planned(seen).decisions, cluster, cluster, NOW)
    assert cluster.writes[0] == ("scale", key(), 2)


def owned(*owners: dict[str, object], on: bool = True) -> list[tuple[str, VariantKey, object]]:
    """What is written about a variant with these owners, whose Deployment has the uid d1."""
    document = va(profiles=[profile("A100")])
    document["metadata"]["ownerReferences"] = list(owners)
    cluster = Cluster()
    seen = snapshot(
        document,
        signals=(signal(40.0),),
        workloads={"vllm": Workload(1, 1, uid="d1")},
        settings=Settings(owner_reference=on),
    )
    apply(planned(seen).decisions, cluster, cluster, NOW)
    return [write for write in cluster.writes if write[0] == "owner"]


DEPLOYMENT = {
    "apiVersion": "apps/v1",
    "kind": "Deployment",
    "name": "vllm",
    "uid": "d1",
    "controller": True,
    "blockOwnerDeletion": False,
}


def test_target_owns_its_variant_where_the_settings_want_it() -> None:
    written = [("owner", key(), DEPLOYMENT)]
    assert owned() == written
    assert owned(on=False) == []
    # Once, and again for a target that was made anew.
    assert owned(DEPLOYMENT) == []
    assert owned(DEPLOYMENT | {"uid": "d0"}) == written
    # Beside owners that are no controllers; what another controller has is left to it.
    assert owned({"kind": "ConfigMap", "name": "x", "uid": "c1"}) == written
    assert owned({"kind": "ModelService", "name": "x", "uid": "m1", "controller": True}) == []


def test_quiet_pass_writes_nothing() -> None:
    cluster = Cluster()
    seen = snapshot(
        va(profiles=[profile("A100")]), signals=(signal(40.0),), workloads={"vllm": Workload(2, 2)}
    )
    first = planned(seen)
    apply(first.decisions, cluster, cluster, NOW)
    ((_, _, patch),) = cluster.writes
    assert isinstance(patch, dict)
    after = replace(seen, variants=(parse_variant(va(profiles=[profile("A100")], status=patch["status"])),))

    again = Cluster()
    apply(planned(after, first.memory, 160.0).decisions, again, again, "2026-01-01T00:01:00Z")
    assert again.writes == []


def test_write_that_fails_costs_that_variant_alone() -> None:
    cluster = Cluster(failing=frozenset({key("a")}))
    documents = (
        va("a", profiles=[profile("A100")]),
        va("b", profiles=[profile("A100")], model="granite-13b"),
    )
    seen = snapshot(*documents, signals=(signal(40.0), signal(40.0, model="granite-13b")), classes=CLASSES)
    failures = apply(planned(seen).decisions, cluster, cluster, NOW)
    assert [(f.variant, f.message) for f in failures] == [(key("a"), f"{NAMESPACE}/a: conflict")]
    assert kinds(cluster) == ["status", "event"]


def test_event_is_recorded_once_for_a_decision() -> None:
    """Until the autoscaler follows, later passes decide the same again: that is no news."""
    cluster = Cluster()
    told = {"desiredOptimizedAlloc": {"numReplicas": 2, "accelerator": "A100", "lastRunTime": NOW}}
    seen = snapshot(va(profiles=[profile("A100")], status=told), signals=(signal(40.0),))
    apply(planned(seen).decisions, cluster, cluster, NOW)
    assert "event" not in kinds(cluster)

"""From a snapshot to the system JSON: groups, loads, options, GPUs."""

from dataclasses import replace

import pytest
from controller_tools import CLASSES, MODEL, NAMESPACE, key, law1, nodes, profile, signal, snapshot, va

from controller.analyze import Analysis, analyze
from controller.configmaps import ZeroRule
from controller.crd import VariantKey
from controller.inventory import GpuNode, Inventory
from controller.settings import Settings
from controller.snapshot import Demand, Snapshot, Spread, Workload
from controller.stability import GroupKey, Memory, Tokens
from solver import schema

GROUP = GroupKey(NAMESPACE, MODEL, "Premium")
NOW_S = 800.0


def analyzed(seen: Snapshot, memory: Memory | None = None, now_s: float = NOW_S) -> Analysis:
    found = analyze(seen, memory or Memory(), now_s)
    if found.system is not None:
        # What is built must be what the service takes.
        schema.parse_system(schema.SystemRequest(system=found.system).model_dump_json())
    return found


def system(seen: Snapshot, memory: Memory | None = None) -> schema.System:
    found = analyzed(seen, memory).system
    assert found is not None
    return found


def server(seen: Snapshot, memory: Memory | None = None) -> schema.Server:
    (one,) = system(seen, memory).server_data.servers
    return one


def test_system_of_the_published_log() -> None:
    """The quickstart of the reference: one variant, 40 requests/min of 178 tokens, an A100."""
    seen = snapshot(
        va("vllme-deployment", profiles=[profile("A100"), profile("H100")]), signals=(signal(40.0),)
    )
    found = system(seen)

    (one,) = found.server_data.servers
    assert (one.name, one.class_name, one.model) == (f"vllme-deployment:{NAMESPACE}", "Premium", MODEL)
    assert (one.min_num_replicas, one.max_num_replicas) == (1, None)
    assert one.current_alloc.load.arrival_rate_rpm == 40.0
    assert one.current_alloc.load.length_tokens == 178.0
    assert (one.current_alloc.accelerator, one.current_alloc.num_replicas) == ("A100", 1)
    assert one.current_alloc.cost_cents_per_h == 40.0
    (law,) = found.model_data.models
    assert (law.acc, law.alpha_ms, law.beta_ms, law.max_batch_size, law.at_tokens) == (
        "A100",
        20.58,
        0.41,
        4,
        0,
    )
    (accelerator,) = found.accelerator_data.accelerators
    assert (accelerator.type, accelerator.cost_cents_per_h) == ("NVIDIA-A100-PCIE-80GB", 40.0)
    (entry,) = found.service_class_data.service_classes
    assert (entry.priority, entry.model_targets[0].slo_itl_ms, entry.model_targets[0].slo_ttft_ms) == (
        1,
        24,
        500,
    )
    assert not found.optimizer_data.optimizer.unlimited


def test_whole_load_of_a_model_counts_once_for_all_its_variants() -> None:
    """Theirs gives every variant of a model the model's whole load."""
    seen = snapshot(
        va("on-a100", label="A100"),
        va("on-h100", label="H100"),
        profiles=(law1("A100"), law1("H100")),
        signals=(signal(60.0, "a-1"), signal(40.0, "h-1")),
        workloads={"on-a100": Workload(1, 1, pods=frozenset({"a-1"})), "on-h100": Workload(2, 2)},
    )
    one = server(seen)
    assert one.current_alloc.load.arrival_rate_rpm == 100.0
    assert [(p.accelerator, p.num_replicas) for p in one.current_alloc.parts] == [("A100", 1), ("H100", 2)]
    assert one.current_alloc.num_replicas == 3
    assert system(seen).optimizer_data.optimizer.heterogeneous
    assert {p.acc for p in system(seen).model_data.models} == {"A100", "H100"}


def test_without_pod_labels_classes_share_a_model_by_ready_replicas() -> None:
    classes = {**CLASSES, "gold": f"name: Gold\npriority: 1\ndata:\n- {{model: {MODEL}, slo-tpot: 10}}\n"}
    seen = snapshot(
        va("gold", sloClassRef={"name": "x", "key": "gold"}),
        va("premium", sloClassRef={"name": "x", "key": "Premium"}),
        profiles=(law1("A100"),),
        signals=(signal(90.0),),
        workloads={"gold": Workload(1, 1), "premium": Workload(2, 2)},
        classes=classes,
    )
    loads = {s.class_name: s.current_alloc.load.arrival_rate_rpm for s in system(seen).server_data.servers}
    assert loads == {"Gold": pytest.approx(30.0), "Premium": pytest.approx(60.0)}


def test_series_without_namespace_are_of_the_model_everywhere() -> None:
    seen = snapshot(
        va("a", namespace="one"),
        va("b", namespace="two"),
        profiles=(law1("A100"),),
        signals=(signal(80.0, namespace=""),),
        workloads={"a": Workload(3, 3), "b": Workload(1, 1)},
    )
    loads = [s.current_alloc.load.arrival_rate_rpm for s in system(seen).server_data.servers]
    assert loads == [pytest.approx(60.0), pytest.approx(20.0)]


def test_traffic_of_pods_of_others_is_not_ours() -> None:
    seen = snapshot(
        va(),
        profiles=(law1("A100"),),
        signals=(signal(10.0, "ours"), signal(500.0, "theirs"), signal(5.0, "unknown")),
        workloads={"vllm": Workload(1, 1, pods=frozenset({"ours"}))},
        foreign_pods=frozenset({(NAMESPACE, "theirs")}),
    )
    assert server(seen).current_alloc.load.arrival_rate_rpm == 15.0


def test_arrivals_are_completions_and_growth() -> None:
    seen = snapshot(
        va(),
        profiles=(law1("A100"),),
        signals=(signal(60.0, "a", growth_rpm=25.0), signal(60.0, "b", growth_rpm=-5.0, output_tokens=300.0)),
    )
    load = server(seen).current_alloc.load
    assert load.arrival_rate_rpm == 140.0
    assert load.avg_out_tokens == pytest.approx((178 + 300) / 2)


def test_draining_queue_is_no_negative_arrival() -> None:
    seen = snapshot(va(), profiles=(law1("A100"),), signals=(signal(10.0, growth_rpm=-40.0),))
    assert server(seen).current_alloc.load.arrival_rate_rpm == 0.0


def test_gateway_count_wins_over_what_the_replicas_saw() -> None:
    seen = snapshot(
        va(),
        profiles=(law1("A100"),),
        signals=(signal(60.0),),
        demands=(Demand(MODEL, NAMESPACE, arrival_rpm=200.0),),
    )
    assert server(seen).current_alloc.load.arrival_rate_rpm == 200.0


def test_growth_of_what_the_gateway_holds_back_is_arrivals_too() -> None:
    """With flow control an overload queues at the gateway, and what drains there arrived before."""
    for growth_rpm, expected in ((50.0, 110.0), (-20.0, 40.0), (-90.0, 0.0)):
        seen = snapshot(
            va(),
            profiles=(law1("A100"),),
            signals=(signal(60.0),),
            demands=(Demand(MODEL, NAMESPACE, queued=500.0, growth_rpm=growth_rpm),),
        )
        assert server(seen).current_alloc.load.arrival_rate_rpm == expected


def test_sizes_of_requests_are_remembered_and_then_default() -> None:
    demand = (Demand(MODEL, "", arrival_rpm=30.0),)
    seen = snapshot(
        va(), profiles=(law1("A100"),), demands=demand, settings=Settings(default_input_tokens=9.0)
    )
    assert server(seen).current_alloc.load.in_out_tokens == (9.0, 256.0)
    memory = Memory(tokens={GROUP: Tokens(100.0, 50.0)})
    assert server(seen, memory).current_alloc.load.in_out_tokens == (100.0, 50.0)


def test_no_metrics_hold_a_variant_that_runs() -> None:
    found = analyzed(snapshot(va(), profiles=(law1("A100"),)))
    assert found.system is None
    assert (found.holds[key()].condition, found.holds[key()].reason) == ("MetricsAvailable", "MetricsMissing")


def test_old_metrics_hold_it_too() -> None:
    found = analyzed(snapshot(va(), profiles=(law1("A100"),), signals=(signal(10.0, age_s=500.0),)))
    assert found.holds[key()].reason == "MetricsStale"


def test_variant_without_replicas_needs_no_metrics() -> None:
    one = server(snapshot(va(), profiles=(law1("A100"),), workloads={"vllm": Workload(0, 0)}))
    assert (one.current_alloc.load.arrival_rate_rpm, one.min_num_replicas) == (0.0, 1)


def test_profile_missing_says_what_there_is() -> None:
    found = analyzed(snapshot(va(label="H100"), profiles=(law1("A100"),), signals=(signal(10.0),)))
    hold = found.holds[key()]
    assert (hold.condition, hold.reason) == ("OptimizationReady", "ProfileMissing")
    assert "on H100" in hold.message
    assert "there: A100" in hold.message


@pytest.mark.parametrize(
    ("more", "reason"),
    [
        ({"model": "nobody-lists-me", "profiles": [profile("A100")]}, "ClassMissing"),
        ({"label": "B200", "profiles": [profile("B200")]}, "AcceleratorUnknown"),
        ({"model": "", "profiles": [profile("A100")]}, "SpecInvalid"),
    ],
)
def test_other_holds_name_their_reason(more: dict[str, object], reason: str) -> None:
    seen = snapshot(va(**more), signals=(signal(10.0),))  # type: ignore[arg-type]
    assert analyzed(seen).holds[key()].reason == reason


def test_missing_target_holds_that_variant_alone() -> None:
    seen = snapshot(va("a"), va("b"), profiles=(law1("A100"),), signals=(signal(10.0),))
    seen = replace(seen, workloads={key("b"): Workload(1, 1)})
    found = analyzed(seen)
    assert (found.holds[key("a")].condition, found.holds[key("a")].reason) == (
        "TargetResolved",
        "TargetNotFound",
    )
    assert [group.server for group in found.groups] == [f"b:{NAMESPACE}"]


def test_accelerator_is_pinned_by_what_the_workload_says_and_by_its_label_unless_allowed_to_move() -> None:
    """Theirs pins the accelerator whatever is configured."""
    both = [profile("A100"), profile("H100")]

    def names(workload: Workload, **more: object) -> set[str]:
        seen = snapshot(va(profiles=both, **more), workloads={"vllm": workload}, signals=(signal(10.0),))  # type: ignore[arg-type]
        return {p.acc for p in system(seen).model_data.models}

    moving = {"annotations": {"inference.optimization/keep-accelerator": "false"}}
    assert names(Workload(1, 1)) == {"A100"}
    assert names(Workload(1, 1), **moving) == {"A100", "H100"}
    assert names(Workload(1, 1), label="") == {"A100", "H100"}
    assert names(Workload(1, 1, pinned_accelerator="H100"), **moving) == {"H100"}
    assert names(Workload(1, 1, pinned_device="NVIDIA-H100-80GB-HBM3"), **moving) == {"H100"}

    free = Settings(keep_accelerator=False)
    seen = snapshot(va(profiles=both), signals=(signal(10.0),), settings=free)
    assert {p.acc for p in system(seen).model_data.models} == {"A100", "H100"}


def test_group_has_no_more_kinds_than_variants_in_a_pass_that_mixes() -> None:
    """The pods of a Deployment are of one kind, which may be another than now."""
    free = va("free", model="granite-13b", annotations={"inference.optimization/keep-accelerator": "false"})
    free["spec"]["modelProfile"] = {"accelerators": [profile("A100"), profile("H100")]}
    signals = (signal(10.0), signal(10.0, model="granite-13b"))
    alone = system(snapshot(free, signals=signals[1:]))
    assert [s.max_types for s in alone.server_data.servers] == [None]
    assert not alone.optimizer_data.optimizer.heterogeneous

    pair = (va("a", label="A100"), va("h", label="H100"))
    mixed = system(snapshot(free, *pair, profiles=(law1("A100"), law1("H100")), signals=signals))
    assert {s.name: s.max_types for s in mixed.server_data.servers} == {
        f"a:{NAMESPACE}": None,
        f"free:{NAMESPACE}": 1,
    }
    assert not any(s.keep_accelerator for s in mixed.server_data.servers)


def test_limits_of_variants_that_share_a_load_hold_accelerator_by_accelerator() -> None:
    seen = snapshot(
        va("a", label="A100", minReplicas=1, maxReplicas=3),
        va("b", label="A100", minReplicas=2, maxReplicas=2),
        va("h", label="H100", maxReplicas=4),
        va("m", label="MI300X"),
        profiles=(law1("A100"), law1("H100"), law1("MI300X")),
        signals=(signal(10.0),),
    )
    limits = {limit.accelerator: (limit.min, limit.max) for limit in server(seen).replica_limits}
    assert limits == {"A100": (3, 5), "H100": (0, 4)}
    assert (server(seen).min_num_replicas, server(seen).max_num_replicas) == (3, None)
    # Alone, its limits are those of the group.
    seen = snapshot(va(minReplicas=1, maxReplicas=3), profiles=(law1("A100"),), signals=(signal(10.0),))
    assert server(seen).replica_limits == []


def test_variant_that_may_run_anywhere_has_its_minimum_nowhere_in_particular() -> None:
    free = va("free", label="", minReplicas=2, profiles=[profile("A100"), profile("H100")])
    pinned = va("pinned", label="A100", minReplicas=1, profiles=[profile("A100")])
    one = server(snapshot(free, pinned, signals=(signal(10.0),)))
    assert [(limit.accelerator, limit.min) for limit in one.replica_limits] == [("A100", 1)]
    assert one.min_num_replicas == 3


def test_load_of_a_group_counts_once() -> None:
    """Theirs gives the model's whole load to each of its variants."""
    by_pod = (signal(30.0, pod="a1"), signal(20.0, pod="h1"))
    workloads = {"a": Workload(1, 1, pods=frozenset({"a1"})), "h": Workload(1, 1, pods=frozenset({"h1"}))}
    for signals in (by_pod, (signal(50.0),), (signal(50.0, namespace=""),)):
        seen = snapshot(
            va("a", label="A100"),
            va("h", label="H100"),
            profiles=(law1("A100"), law1("H100")),
            signals=signals,
            workloads=workloads,
        )
        assert server(seen).current_alloc.load.arrival_rate_rpm == pytest.approx(50.0)


def test_inventory_limits_unless_it_is_set_unlimited() -> None:
    """Theirs is unlimited whatever is configured."""
    seen = snapshot(va(profiles=[profile("A100")]), signals=(signal(10.0),), inventory=nodes(A100=2, H100=3))
    found = system(seen)
    assert [(c.type, c.count) for c in found.capacity_data.count] == [
        ("NVIDIA-A100-PCIE-80GB", 2),
        ("NVIDIA-H100-80GB-HBM3", 3),
    ]
    assert [(n.name, n.count) for n in found.capacity_data.nodes] == [("node-A100", 2), ("node-H100", 3)]

    seen = snapshot(
        va(profiles=[profile("A100")]), signals=(signal(10.0),), settings=Settings(unlimited=True)
    )
    assert system(seen).optimizer_data.optimizer.unlimited


def test_gpus_of_held_variants_are_not_given_away() -> None:
    there = replace(nodes(A100=8), held={key("held"): {"node-A100": 3}, key("vllm"): {"node-A100": 2}})
    seen = snapshot(
        va(profiles=[profile("A100")]),
        va("held", model="unlisted", profiles=[profile("A100")]),
        signals=(signal(10.0),),
        inventory=there,
    )
    assert [node.count for node in system(seen).capacity_data.nodes] == [5]


def test_gpus_that_held_variants_have_asked_for_are_theirs() -> None:
    """Two of its three replicas have no node yet: what they need is not there for others."""
    there = Inventory(
        (GpuNode("full", "NVIDIA-A100-PCIE-80GB", 4), GpuNode("half", "NVIDIA-A100-PCIE-80GB", 8)),
        {key("held"): {"full": 2}},
        0.0,
    )
    held = va("held", model="unlisted", profiles=[profile("A100")])

    def free(waiting: Workload) -> list[int]:
        seen = snapshot(
            va(profiles=[profile("A100")]),
            held,
            signals=(signal(10.0),),
            inventory=there,
            workloads={"held": waiting},
        )
        assert key("held") in analyzed(seen).holds
        return [node.count for node in system(seen).capacity_data.nodes]

    assert free(Workload(1, 1, gpus_per_replica=2)) == [2, 8]
    # Each goes where it leaves the least; what fits nowhere takes nothing.
    assert free(Workload(2, 1, gpus_per_replica=2)) == [0, 8]
    assert free(Workload(3, 1, gpus_per_replica=2)) == [0, 6]
    assert free(Workload(9, 1, gpus_per_replica=2)) == [0, 0]
    assert free(Workload(3, 1)) == [2, 8]


def test_limit_by_config_map_holds_with_what_held_variants_keep() -> None:
    there = replace(nodes(A100=8), held={key("held"): {"node-A100": 2}})
    seen = snapshot(
        va(profiles=[profile("A100")]),
        va("held", model="unlisted", profiles=[profile("A100")]),
        signals=(signal(10.0),),
        inventory=there,
        capacity={"A100": 3},
    )
    assert [entry.count for entry in system(seen).capacity_data.count] == [1]


def test_limit_by_config_map_goes_by_device_or_accelerator() -> None:
    seen = snapshot(
        va(profiles=[profile("A100")]), signals=(signal(10.0),), inventory=nodes(A100=8), capacity={"A100": 3}
    )
    assert [entry.count for entry in system(seen).capacity_data.count] == [3]


def test_unreadable_nodes_stop_no_scaling_up_silently() -> None:
    """Theirs stops scaling up, without a word, when the inventory cannot be read."""
    seen = snapshot(va(profiles=[profile("A100")]), signals=(signal(10.0),), inventory=nodes(A100=2))
    lately = analyzed(replace(seen, nodes_readable=False))
    assert [entry.count for entry in lately.system.capacity_data.count] == [2]  # type: ignore[union-attr]
    assert (lately.inventory.status, lately.inventory.reason) == (False, "NodesUnreadable")

    for gone in (
        analyzed(replace(seen, nodes_readable=False), now_s=5000.0),
        analyzed(replace(seen, inventory=None)),
    ):
        assert gone.system is not None
        assert gone.system.optimizer_data.optimizer.unlimited
        assert (gone.inventory.status, gone.inventory.reason) == (False, "NodesUnreadable")


def test_device_of_the_price_list_and_of_the_node_may_differ_a_little() -> None:
    there = Inventory((GpuNode("n", "AMD-MI300X-192G", 8),), {}, 0.0)
    seen = snapshot(
        va(label="MI300X", profiles=[profile("MI300X")]), signals=(signal(10.0),), inventory=there
    )
    assert [(n.type, n.count) for n in system(seen).capacity_data.nodes] == [("AMD-MI300X-192GB", 8)]


def test_devices_that_do_not_fit_hold_what_runs_and_are_named() -> None:
    there = Inventory((GpuNode("n", "NVIDIA-L40S", 8),), {}, 0.0)
    seen = snapshot(va(profiles=[profile("A100")]), signals=(signal(10.0),), inventory=there)
    found = analyzed(seen)
    assert found.holds[key()].reason == "DeviceUnmatched"
    assert (found.inventory.reason, "NVIDIA-L40S" in found.inventory.message) == ("DevicesUnmatched", True)


def test_real_batch_limit_and_cards_count_and_are_told() -> None:
    workload = Workload(1, 1, gpus_per_replica=2, tensor_parallel=2, max_num_seqs=256)
    choices = [profile("A100", batchSizes=[1, 2, 4])]
    seen = snapshot(va(profiles=choices), signals=(signal(10.0),), workloads={"vllm": workload})
    found = analyzed(seen)
    assert found.system is not None
    (law,) = found.system.model_data.models
    # Nothing is left to choose from.
    assert (law.max_batch_size, law.acc_count, law.batch_sizes) == (256, 2, [])
    assert found.system.server_data.servers[0].current_alloc.cost_cents_per_h == 80.0
    assert ["batches up to 4" in note or "a pod has 2" in note for note in found.notes[key()]] == [True, True]


def test_cost_of_a_variant_is_obeyed_beside_the_price_list() -> None:
    seen = snapshot(
        va("cheap", variantCost="12.0"),
        va("listed"),
        profiles=(law1("A100"),),
        signals=(signal(10.0),),
    )
    costs = {a.name: a.cost_cents_per_h for a in system(seen).accelerator_data.accelerators}
    assert costs == {"A100": 40.0, f"A100 of {NAMESPACE}/cheap": 12.0}


@pytest.mark.parametrize("cards", [3, 7, 11])
def test_price_of_several_cards_is_that_of_the_list(cards: int) -> None:
    seen = snapshot(
        va(profiles=[profile("A100")]),
        signals=(signal(10.0),),
        workloads={"vllm": Workload(1, 1, gpus_per_replica=cards)},
    )
    accelerators = replace(seen.configuration.accelerators[0], cost_cents_per_h=0.1)
    seen = replace(seen, configuration=replace(seen.configuration, accelerators=(accelerators,)))
    assert [a.name for a in system(seen).accelerator_data.accelerators] == ["A100"]


def test_profiles_that_differ_between_groups_do_not_meet() -> None:
    seen = snapshot(
        va("a", namespace="one", profiles=[profile("A100")]),
        va("b", namespace="two", profiles=[profile("A100", alpha="9")]),
        signals=(signal(10.0, namespace="one"), signal(10.0, namespace="two")),
    )
    found = system(seen)
    alphas = {p.name: p.alpha_ms for p in found.model_data.models}
    models = {s.name: alphas[s.model] for s in found.server_data.servers}
    assert models == {"a:one": 20.58, "b:two": 9.0}
    (entry,) = found.service_class_data.service_classes
    assert len(entry.model_targets) == 2


@pytest.mark.parametrize(
    ("specs", "expected"),
    [
        ([{}], (1, None)),
        ([{"minReplicas": 2, "maxReplicas": 5}], (2, 5)),
        ([{"minReplicas": 2, "maxReplicas": 5}, {}], (2, None)),
        ([{"minReplicas": 2, "maxReplicas": 5}, {"minReplicas": 1, "maxReplicas": 1}], (3, 6)),
        ([{"maxReplicas": 0}], (0, 0)),
    ],
)
def test_limits_of_a_group_are_those_of_its_variants(
    specs: list[dict[str, int]], expected: tuple[int, int | None]
) -> None:
    documents = [va(f"v{i}", **spec) for i, spec in enumerate(specs)]  # type: ignore[arg-type]
    one = server(snapshot(*documents, profiles=(law1("A100"),), signals=(signal(10.0),)))
    assert (one.min_num_replicas, one.max_num_replicas) == expected


def idle(**more: object) -> Snapshot:
    return snapshot(va(), profiles=(law1("A100"),), signals=(signal(0.0),), **more)  # type: ignore[arg-type]


def test_last_replica_goes_where_allowed_after_the_retention() -> None:
    memory = Memory(traffic_at_s={GROUP: NOW_S - 700.0})
    allowed = Settings(scale_to_zero=True, scale_to_zero_retention_s=600.0)
    assert server(idle(settings=allowed), memory).min_num_replicas == 0
    assert server(idle(), memory).min_num_replicas == 1
    assert server(idle(settings=allowed), Memory(traffic_at_s={GROUP: NOW_S - 500.0})).min_num_replicas == 1
    # A controller that has just started does not know how long there was no traffic.
    assert server(idle(settings=allowed)).min_num_replicas == 1
    in_flight = snapshot(
        va(), profiles=(law1("A100"),), signals=(signal(0.0, in_flight=1.0),), settings=allowed
    )
    assert server(in_flight, memory).min_num_replicas == 1


def test_scale_to_zero_is_allowed_variant_by_variant() -> None:
    memory = Memory(traffic_at_s={GROUP: 0.0})

    def least(**more: object) -> int:
        seen = snapshot(va(**more), profiles=(law1("A100"),), signals=(signal(0.0),))  # type: ignore[arg-type]
        return server(seen, memory).min_num_replicas

    assert least(minReplicas=0) == 0
    assert least(annotations={"inference.optimization/scale-to-zero": "true"}) == 0
    assert least(annotations={"inference.optimization/scale-to-zero": "maybe"}) == 1
    assert least(minReplicas=0, annotations={"inference.optimization/scale-to-zero": "false"}) == 1


@pytest.mark.parametrize(
    ("rules", "idle_s", "least"),
    [
        ((ZeroRule(enabled=True),), 700.0, 0),
        ((ZeroRule(enabled=True),), 500.0, 1),
        ((ZeroRule(enabled=True, retention_s=60.0),), 70.0, 0),
        ((ZeroRule(MODEL, enabled=True), ZeroRule(enabled=False)), 700.0, 0),
        ((ZeroRule(enabled=True), ZeroRule(MODEL, enabled=False)), 700.0, 1),
        ((ZeroRule(MODEL, enabled=True), ZeroRule(MODEL, NAMESPACE, enabled=False)), 700.0, 1),
        ((ZeroRule(MODEL, "elsewhere", enabled=True),), 700.0, 1),
        ((ZeroRule(MODEL, enabled=True), ZeroRule(retention_s=60.0)), 70.0, 0),
        ((ZeroRule("other", enabled=True),), 700.0, 1),
    ],
)
def test_scale_to_zero_is_allowed_model_by_model(
    rules: tuple[ZeroRule, ...], idle_s: float, least: int
) -> None:
    seen = idle()
    seen = replace(seen, configuration=replace(seen.configuration, zero_rules=rules))
    assert server(seen, Memory(traffic_at_s={GROUP: NOW_S - idle_s})).min_num_replicas == least


def test_variation_of_lengths_is_part_of_the_load_and_remembered() -> None:
    spread = (Spread(MODEL, "", 0.9, 1.3), Spread(MODEL, NAMESPACE, 0.5, None), Spread("other", "", 7.0, 7.0))
    seen = snapshot(va(), profiles=(law1("A100"),), signals=(signal(10.0),))
    load = server(replace(seen, traffic=replace(seen.traffic, spreads=spread))).current_alloc.load
    assert (load.in_tokens_cov, load.out_tokens_cov) == (0.5, None)
    found = analyzed(replace(seen, traffic=replace(seen.traffic, spreads=spread[:1])))
    assert found.memory.tokens == {GROUP: Tokens(128.0, 178.0, 0.9, 1.3)}
    # With too few requests to tell, what was seen last counts.
    load = server(seen, found.memory).current_alloc.load
    assert (load.in_tokens_cov, load.out_tokens_cov) == (0.9, 1.3)
    # Nothing is said where nothing is known: 0 would say that all lengths are the same.
    load = server(seen).current_alloc.load
    assert "inTokensCOV" not in load.model_dump(by_alias=True, exclude_none=True)


@pytest.mark.parametrize(
    ("more", "arrival_rpm"),
    [
        ({"demands": (Demand(MODEL, NAMESPACE, queued=7.0),)}, 7.0),
        ({"demands": (Demand(MODEL, "", arrival_rpm=20.0),)}, 20.0),
        ({"woken": frozenset({(NAMESPACE, MODEL)})}, 0.0),
    ],
)
def test_scale_to_zero_comes_back(more: dict[str, object], arrival_rpm: float) -> None:
    """Theirs cannot come back from zero: without replicas there are no metrics."""
    memory = Memory(traffic_at_s={GROUP: 0.0})
    seen = snapshot(
        va(),
        profiles=(law1("A100"),),
        workloads={"vllm": Workload(0, 0)},
        settings=Settings(scale_to_zero=True),
        **more,  # type: ignore[arg-type]
    )
    one = server(seen, memory)
    assert (one.min_num_replicas, one.current_alloc.load.arrival_rate_rpm) == (1, arrival_rpm)


def test_queue_of_the_gateway_counts_while_the_first_replica_starts() -> None:
    seen = snapshot(
        va(),
        profiles=(law1("A100"),),
        workloads={"vllm": Workload(1, 0)},
        demands=(Demand(MODEL, NAMESPACE, queued=90.0),),
    )
    assert server(seen).current_alloc.load.arrival_rate_rpm == 90.0
    # Once a replica serves, what it was seen to do counts.
    serving = replace(seen, workloads={key(): Workload(1, 1)})
    assert analyzed(serving).holds[key()].reason == "MetricsMissing"


def test_memory_forgets_groups_that_are_gone() -> None:
    gone = GroupKey("x", "y", "z")
    memory = Memory(traffic_at_s={gone: 1.0}, tokens={gone: Tokens(1.0, 1.0)})
    learnt = analyzed(snapshot(va(), profiles=(law1("A100"),), signals=(signal(10.0),)), memory).memory
    assert learnt.traffic_at_s == {GROUP: NOW_S}
    assert learnt.tokens == {GROUP: Tokens(128.0, 178.0)}


def test_empty_cluster_is_no_error() -> None:
    """Theirs ends its loop on an empty list."""
    found = analyzed(snapshot())
    assert (found.system, found.groups, dict(found.holds)) == (None, (), {})


def test_servers_come_in_order_whatever_the_order_of_the_objects() -> None:
    documents = [va(name, namespace=space) for name, space in (("b", "y"), ("a", "z"), ("c", "x"))]
    signals = tuple(signal(10.0, namespace=space) for space in "xyz")
    one = system(snapshot(*documents, profiles=(law1("A100"),), signals=signals))
    other = system(snapshot(*documents[::-1], profiles=(law1("A100"),), signals=signals))
    assert one == other
    assert [s.name for s in one.server_data.servers] == ["c:x", "b:y", "a:z"]


def test_key_is_written_as_users_write_it() -> None:
    assert str(VariantKey("ns", "name")) == "ns/name"

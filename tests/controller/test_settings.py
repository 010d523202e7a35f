"""Settings and ConfigMaps: sources in their order, and one bad entry costs that entry alone."""

import pytest
from controller_tools import CLASSES, COSTS, MODEL

from controller.configmaps import (
    ZeroRule,
    class_of,
    parse_accelerators,
    parse_capacity,
    parse_classes,
    parse_profiles,
    parse_zero_rules,
)
from controller.crd import ClassRef
from controller.settings import Settings, load_settings, parse_duration, parse_flag


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("60s", 60),
        ("1m30s", 90),
        ("1.5h", 5400),
        ("300ms", 0.3),
        (".5s", 0.5),
        ("1h0m0.5s", 3600.5),
        ("0", 0),
        ("+5s", 5),
        ("10us", 1e-5),
        ("10µs", 1e-5),
    ],
)
def test_go_durations(text: str, seconds: float) -> None:
    assert parse_duration(text) == pytest.approx(seconds)


@pytest.mark.parametrize("text", ["", "60", "s", "1 m", "-5s", "1d", "1s 2s", "1s,", "nans"])
def test_what_is_no_duration(text: str) -> None:
    with pytest.raises(ValueError, match="duration"):
        parse_duration(text)


def test_flags_are_those_of_go() -> None:
    assert [parse_flag(text) for text in ("1", "t", "TRUE", "True")] == [True] * 4
    assert [parse_flag(text) for text in ("0", "f", "False")] == [False] * 3
    with pytest.raises(ValueError, match="neither"):
        parse_flag("yes")


def test_environment_over_config_map_over_default_key_by_key() -> None:
    loaded = load_settings(
        {"PROMETHEUS_BASE_URL": "https://here:9090/", "WVA_SCALE_TO_ZERO": ""},
        {
            "PROMETHEUS_BASE_URL": "http://there:9090",
            "PROMETHEUS_TLS_INSECURE_SKIP_VERIFY": "true",
            "PROMETHEUS_CA_CERT_PATH": "/ca.crt",
            "PROMETHEUS_CLIENT_CERT_PATH": "/c.crt",
            "PROMETHEUS_CLIENT_KEY_PATH": "/c.key",
            "PROMETHEUS_SERVER_NAME": "prom",
            "PROMETHEUS_BEARER_TOKEN": "abc",
            "PROMETHEUS_TOKEN_PATH": "/token",
            "GLOBAL_OPT_INTERVAL": "30s",
            "GLOBAL_OPT_TRIGGER": "false",
            "WVA_SCALE_TO_ZERO": "true",
        },
    )
    settings = loaded.value
    assert loaded.problems == ()
    assert settings.prometheus.base_url == "https://here:9090"
    assert settings.prometheus.skip_verify
    assert settings.prometheus.token_path == "/token"
    assert settings.interval_s == 30
    assert settings.scale_to_zero
    assert settings.scale_down_window_s == Settings().scale_down_window_s == 300


def test_bad_value_falls_to_the_next_source_and_is_reported() -> None:
    loaded = load_settings(
        {"GLOBAL_OPT_INTERVAL": "often", "FLEETOPT_MIN_GAIN": "2"},
        {"GLOBAL_OPT_INTERVAL": "90s", "FLEETOPT_SATURATION_POLICY": "roundrobin"},
    )
    assert loaded.value.interval_s == 90
    assert loaded.value.min_gain == 0
    assert loaded.value.saturation_policy == "RoundRobin"
    assert len(loaded.problems) == 2
    assert "GLOBAL_OPT_INTERVAL of the environment is not used" in loaded.problems[0]


@pytest.mark.parametrize(
    ("key", "bad"),
    [
        ("GLOBAL_OPT_INTERVAL", "0s"),
        ("PROMETHEUS_BASE_URL", "prometheus:9090"),
        ("FLEETOPT_RATE_WINDOW", "1m]) or vector(1"),
        ("FLEETOPT_MAX_STEP_UP", "-1"),
        ("FLEETOPT_DEFAULT_INPUT_TOKENS", "nan"),
        ("FLEETOPT_ACTUATE", "maybe"),
        ("FLEETOPT_UNLIMITED", "yes"),
    ],
)
def test_each_bad_value_leaves_the_default(key: str, bad: str) -> None:
    loaded = load_settings({}, {key: bad})
    assert loaded.value == Settings()
    assert [key in problem for problem in loaded.problems] == [True]


@pytest.mark.parametrize(
    "bad",
    ["", "{", "[]", '"A100"', '{"cost": "40"}', '{"device": "X"}', '{"device": "X", "cost": "NaN"}', "null"],
)
def test_one_bad_cost_entry_blocks_no_other(bad: str) -> None:
    loaded = parse_accelerators({**COSTS, "BAD": bad})
    assert [entry.name for entry in loaded.value] == ["A100", "G2", "H100", "MI300X"]
    assert loaded.value[0].cost_cents_per_h == 40.0
    assert len(loaded.problems) == 1
    assert "accelerator-unit-costs[BAD]" in loaded.problems[0]


@pytest.mark.parametrize(
    "bad", ["{", "- a", "priority: 1", "name: Premium\npriority: high", "name: Premium\npriority: 2"]
)
def test_one_bad_class_blocks_no_other(bad: str) -> None:
    loaded = parse_classes({**CLASSES, "worse.yaml": bad})
    assert [entry.service_class.name for entry in loaded.value] == ["Premium", "Freemium"]
    assert len(loaded.problems) == 1


def test_one_bad_target_costs_that_target_alone() -> None:
    text = "name: A\npriority: 3\ndata:\n- model: m\n  slo-tpot: fast\n- model: n\n  slo-tpot: 20\n- n\n"
    loaded = parse_classes({"a": text})
    (target,) = loaded.value[0].service_class.model_targets
    assert (target.model, target.slo_itl_ms) == ("n", 20)
    assert len(loaded.problems) == 2


def test_class_reference_counts_when_it_resolves() -> None:
    both = {
        "gold.yaml": f"name: Gold\npriority: 1\ndata:\n- model: {MODEL}\n  slo-tpot: 10\n",
        "silver.yaml": f"name: Silver\npriority: 5\ndata:\n- model: {MODEL}\n  slo-tpot: 50\n",
        "other.yaml": "name: Other\npriority: 1\ndata:\n- model: else\n  slo-tpot: 50\n",
    }
    entries = parse_classes(both).value

    def named(ref: ClassRef | None) -> str:
        found = class_of(MODEL, ref, entries)
        assert found is not None
        return found.name

    assert named(ClassRef("service-classes-config", "silver.yaml")) == "Silver"
    assert named(ClassRef("service-classes-config", "silver")) == "Silver"
    assert named(ClassRef("Silver", "")) == "Silver"
    # Neither a reference that leads nowhere nor one to a class without the model counts.
    assert named(ClassRef("premium-slo", "opt-125m")) == "Gold"
    assert named(ClassRef("service-classes-config", "other.yaml")) == "Gold"
    assert named(None) == "Gold"
    assert class_of("unknown", None, entries) is None


def test_profiles_of_a_config_map() -> None:
    text = """
- {name: m, acc: A100, maxBatchSize: 64, perfParms: {alpha: 5, beta: "0.1", gamma: 0.001}}
- {name: m, acc: H100, ratePerReplica: 2.5}
- {name: m, acc: H100, ratePerReplica: 3}
- {name: m, acc: G2}
"""
    loaded = parse_profiles({"m": text, "bad": "name: m"})
    assert [(p.acc, p.law) for p in loaded.value] == [("A100", 3), ("H100", 0)]
    assert len(loaded.problems) == 3


def test_capacity_limits() -> None:
    loaded = parse_capacity({"H100": "16", "A100": "many", "G2": "-1"})
    assert loaded.value == {"H100": 16}
    assert len(loaded.problems) == 2


def test_models_that_may_have_no_replicas() -> None:
    loaded = parse_zero_rules(
        {
            "default": "enable_scale_to_zero: true\nretention_period: 5m",
            "a": "model_id: one\nenable_scale_to_zero: false",
            "b": "model_id: two\nnamespace: n\nretention_period: 1m30s",
            "no-model": "enable_scale_to_zero: true",
            "no-duration": "model_id: one\nretention_period: soon",
            "no-flag": "model_id: one\nenable_scale_to_zero: perhaps",
            "no-yaml": "{",
        }
    )
    assert set(loaded.value) == {
        ZeroRule(enabled=True, retention_s=300.0),
        ZeroRule("one", enabled=False),
        ZeroRule("two", "n", retention_s=90.0),
    }
    assert [problem.split("]")[0] for problem in loaded.problems] == [
        f"model-scale-to-zero-config[{key}" for key in ("no-duration", "no-flag", "no-model", "no-yaml")
    ]

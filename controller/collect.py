"""Kubernetes objects and Prometheus series -> Snapshot.

A pass asks Prometheus twelve questions at most, however many variants there are: every query is about all
models at once and its answer is told apart by labels. The queries change units: rates become requests/min,
latencies ms.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from controller.configmaps import (
    ACCELERATORS,
    CAPACITY,
    CLASSES,
    PROFILES,
    SETTINGS_SUFFIX,
    ZERO_SUFFIX,
    parse_accelerators,
    parse_capacity,
    parse_classes,
    parse_profiles,
    parse_zero_rules,
)
from controller.crd import VariantKey, parse_variant
from controller.errors import PrometheusError
from controller.inventory import count_gpus, matches
from controller.prometheus import Query, QueryRefusedError, Vector
from controller.settings import load_settings, window_seconds
from controller.shape import coefficient_of_variation
from controller.snapshot import Configuration, Demand, Signal, Snapshot, Spread, Traffic, workload_of

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping, Sequence

    from controller.inventory import Inventory
    from controller.settings import Settings

# Proxies take URLs of 8 kB, in which special characters take three.
_LONGEST_PATTERN = 1000

_BY = "by (model_name, namespace, pod)"

# Labels that name the model: vLLM's and the gateways'.
_MODEL_LABELS = ("model_name", "target_model_name", "model")


@dataclass(frozen=True)
class View:
    """What a cluster has, as JSON objects.

    Attributes
    ----------
    variants : sequence of objects
    targets : mapping of VariantKey to object
        Scale targets that were found, with the shape of a Deployment.
    pods : sequence of objects
        Of all namespaces.
    nodes : sequence of objects or None
        None: they could not be read.
    config_maps : mapping of str to (mapping of str to str)
        Data of those in the system namespace, by name.
    """

    variants: Sequence[Mapping[str, Any]]
    targets: Mapping[VariantKey, Mapping[str, Any]]
    pods: Sequence[Mapping[str, Any]]
    nodes: Sequence[Mapping[str, Any]] | None
    config_maps: Mapping[str, Mapping[str, str]]


def read_configuration(
    config_maps: Mapping[str, Mapping[str, str]], environ: Mapping[str, str]
) -> Configuration:
    """Read all ConfigMaps; settings may be spread over several whose names end as they should."""
    settings = load_settings(environ, _spread_over(config_maps, SETTINGS_SUFFIX))
    zero_rules = parse_zero_rules(_spread_over(config_maps, ZERO_SUFFIX))
    accelerators = parse_accelerators(config_maps.get(ACCELERATORS, {}))
    classes = parse_classes(config_maps.get(CLASSES, {}))
    profiles = parse_profiles(config_maps.get(PROFILES, {}))
    capacity = parse_capacity(config_maps.get(CAPACITY, {}))
    absent = [f"there is no ConfigMap {name}" for name in (ACCELERATORS, CLASSES) if name not in config_maps]
    problems = (settings, accelerators, classes, profiles, capacity, zero_rules)
    return Configuration(
        settings=settings.value,
        accelerators=accelerators.value,
        classes=classes.value,
        profiles=profiles.value,
        capacity=capacity.value,
        zero_rules=zero_rules.value,
        problems=(*absent, *(text for loaded in problems for text in loaded.problems)),
    )


def _spread_over(config_maps: Mapping[str, Mapping[str, str]], suffix: str) -> dict[str, str]:
    """Merge the data of the ConfigMaps whose names end so, in the order of their names."""
    given: dict[str, str] = {}
    for name in sorted(config_maps):
        if name.endswith(suffix):
            given |= config_maps[name]
    return given


def snapshot_of(
    view: View,
    configuration: Configuration,
    traffic: Traffic,
    before: Inventory | None,
    woken: frozenset[tuple[str, str]],
    now_s: float,
) -> Snapshot:
    """Put together what a pass decides from.

    Parameters
    ----------
    view : View
    configuration : Configuration
    traffic : Traffic
    before : Inventory or None
        The last one that was read; it counts where nodes cannot be read now.
    woken : frozenset of (str, str)
        Namespace and model of which a wake-up was asked for.
    now_s : float
        On a clock that does not jump.
    """
    variants = tuple(sorted((parse_variant(document) for document in view.variants), key=lambda v: v.key))
    owner = _owners(view)
    pods: dict[VariantKey, set[str]] = {}
    foreign: set[tuple[str, str]] = set()
    for pod in view.pods:
        key, name = owner.get(_name(pod)), _name(pod)
        if key is None:
            foreign.add(name)
        else:
            pods.setdefault(key, set()).add(name[1])
    inventory = (
        before
        if view.nodes is None
        else count_gpus(view.nodes, view.pods, lambda pod: owner.get(_name(pod)), now_s)
    )
    return Snapshot(
        variants=variants,
        workloads={
            key: workload_of(target, frozenset(pods.get(key, ()))) for key, target in view.targets.items()
        },
        configuration=configuration,
        traffic=traffic,
        inventory=inventory,
        nodes_readable=view.nodes is not None,
        foreign_pods=frozenset(foreign),
        woken=woken,
    )


def _name(thing: Mapping[str, Any]) -> tuple[str, str]:
    return thing["metadata"].get("namespace", ""), thing["metadata"]["name"]


def _owners(view: View) -> dict[tuple[str, str], VariantKey]:
    """Find the variant of every pod that a target selects; of two that select it, the first by name."""
    selectors: dict[str, list[tuple[VariantKey, Mapping[str, Any]]]] = {}
    for key in sorted(view.targets):
        selector = (view.targets[key].get("spec") or {}).get("selector") or {}
        selectors.setdefault(key.namespace, []).append((key, selector))
    found: dict[tuple[str, str], VariantKey] = {}
    for pod in view.pods:
        name = _name(pod)
        labels = pod["metadata"].get("labels") or {}
        for key, selector in selectors.get(name[0], ()):
            if matches(selector, labels):
                found[name] = key
                break
    return found


# --- Prometheus ---


def queries(window: str) -> dict[str, str]:
    """Return the PromQL of vLLM's signals, old names and new, over a window such as ``1m``.

    Growth is how much more runs and waits than at the window's start, so that completions and growth add up
    to the arrivals, also of a pod that has just started. It is left out for a pod that restarted in the
    window: what was in flight there went away without being served.
    """

    def total(function: str, name: str) -> str:
        return f"sum {_BY} ({_either(f'{function}({{}}[{window}])', name)})"

    def mean_of(name: str) -> str:
        return f"{total('rate', f'{name}_sum')} / {total('rate', f'{name}_count')}"

    per_minute = 60.0 / window_seconds(window)
    running, waiting, completed = "num_requests_running", "num_requests_waiting", "request_success_total"
    return {
        "completed_rpm": f"{total('rate', completed)} * 60",
        "growth_rpm": (
            f"({total('delta', running)} + {total('delta', waiting)}) * {per_minute:.9g} "
            f"unless {total('resets', completed)} > 0"
        ),
        "in_flight": f"sum {_BY} ({_either('{}', running)}) + sum {_BY} ({_either('{}', waiting)})",
        "input_tokens": mean_of("request_prompt_tokens"),
        "output_tokens": mean_of("request_generation_tokens"),
        "ttft_ms": f"({mean_of('time_to_first_token_seconds')}) * 1000",
        "itl_ms": (
            f"(({mean_of('inter_token_latency_seconds')}) "
            f"or ({mean_of('time_per_output_token_seconds')})) * 1000"
        ),
        "age_s": f"time() - max {_BY} ({_either('timestamp({})', running)})",
    }


def _either(form: str, name: str) -> str:
    """PromQL of one of vLLM's series, whose colon its client library may have made an underscore.

    It does where the scraper asks for OpenMetrics: https://github.com/prometheus/client_python/issues/1177.
    """
    return f"{form.format(f'vllm:{name}')} or {form.format(f'vllm_{name}')}"


def queue_promql(window: str) -> str:
    """Return the PromQL of requests that the endpoint picker holds back: how many, and their growth.

    It is that of the Gateway API's inference extension. Growth, in requests/min, has a label ``of``.
    """
    by, queue = "by (model_name, target_model_name, namespace)", "inference_extension_flow_control_queue_size"
    growth = f"sum {by} (deriv({queue}[{window}])) * 60"
    return f'sum {by} ({queue}) or label_replace({growth}, "of", "growth", "", "")'


def arrival_promql(template: str, variants: Iterable[tuple[str, str]]) -> str:
    """Fill in an ARRIVAL_QUERY: ``$models`` and ``$namespaces`` become regular expressions, in requests/min.

    Parameters
    ----------
    template : str
        PromQL in requests/s, such as ``sum by (model_name) (rate(x_total{model_name=~"$models"}[1m]))``.
    variants : iterable of (str, str)
        Namespace and model of each.
    """
    pairs = set(variants)
    models = _any_of(model for _, model in pairs)
    namespaces = _any_of(namespace for namespace, _ in pairs)
    return "(" + template.replace("$models", models).replace("$namespaces", namespaces) + ") * 60"


def lengths_promql(what: str, models: Iterable[str], window: str) -> str:
    """Return the PromQL of a histogram of request lengths: its buckets, and without ``le`` its sum.

    Parameters
    ----------
    what : str
        ``prompt`` or ``generation``.
    models : iterable of str
        Those of which it is wanted.
    window : str
        PromQL duration.
    """
    series = f'{{__name__=~"vllm[:_]request_{what}_tokens_(bucket|sum)",model_name=~"{_any_of(models)}"}}'
    return f"sum by (model_name, namespace, le) (increase({series}[{window}]))"


def _any_of(values: Iterable[str]) -> str:
    """Regular expression of values; of any, where it would be too long for the URL that carries the query."""
    pattern = "|".join(escaped(value) for value in sorted(set(values)))
    return pattern if len(pattern) <= _LONGEST_PATTERN else ".+"


def escaped(value: str) -> str:
    """Escape a value for a regular expression inside a double-quoted PromQL string."""
    pattern = re.sub(r"([\\.+*?()|\[\]{}^$])", r"\\\1", value)
    return pattern.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")


def read_traffic(
    query: Query,
    settings: Settings,
    variants: Iterable[tuple[str, str]],
    on_moments: Collection[str] = (),
) -> Traffic:
    """Ask Prometheus what arrives.

    Parameters
    ----------
    query : Query
    settings : Settings
    variants : iterable of (str, str)
        Namespace and model of each.
    on_moments : collection of str
        Models whose law asks how much the lengths of requests vary.

    Raises
    ------
    PrometheusError
        When a query about arrivals has no answer; part of the traffic is no traffic to decide from.
    """
    found: dict[tuple[str, str, str], dict[str, float]] = {}
    for name, promql in queries(settings.rate_window).items():
        for labels, value in _values(query(promql)):
            source = (labels.get("model_name", ""), labels.get("namespace", ""), labels.get("pod", ""))
            found.setdefault(source, {})[name] = value
    signals = tuple(
        Signal(model=model, namespace=namespace, pod=pod, **{"completed_rpm": 0.0, **values})
        for (model, namespace, pod), values in sorted(found.items())
        # Before its first completion a pod has a queue that grows; without either it has just gone.
        if "completed_rpm" in values or "growth_rpm" in values
    )
    arrivals: dict[tuple[str, str], float] = {}
    problems: tuple[str, ...] = ()
    if settings.arrival_query:
        try:
            arrivals = _by_model(_values(query(arrival_promql(settings.arrival_query, variants))))
        except QueryRefusedError as error:
            # The user's own query costs itself alone: completions and growth are still there.
            problems = (f"ARRIVAL_QUERY is not used: {error}",)
    held_back = _values(query(queue_promql(settings.rate_window)))
    queued = _by_model(pair for pair in held_back if "of" not in pair[0])
    growth = _by_model(pair for pair in held_back if "of" in pair[0])
    demands = tuple(
        Demand(*place, arrivals.get(place), queued.get(place, 0.0), growth.get(place, 0.0))
        for place in sorted(arrivals.keys() | queued.keys() | growth.keys())
    )
    spreads: tuple[Spread, ...] = ()
    if on_moments:
        try:
            spreads = _spreads(query, settings.shape_window, on_moments)
        except PrometheusError as error:
            # What was seen last is about as good: lengths change slowly.
            problems = (*problems, f"how much lengths of requests vary is not known: {error}")
    return Traffic(signals, demands, spreads, problems)


def models_on_moments(snapshot: Snapshot) -> frozenset[str]:
    """Find the models with a profile of law 3 whose queue is computed from the moments of request lengths."""
    configuration = snapshot.configuration
    profiles = (*configuration.profiles, *(p for variant in snapshot.variants for p in variant.profiles))
    return frozenset(
        profile.name
        for profile in profiles
        if profile.law == 3 and (profile.queue_model or configuration.settings.queue_model) == "moments"
    )


def _spreads(query: Query, window: str, models: Collection[str]) -> tuple[Spread, ...]:
    found: dict[tuple[str, str], dict[str, float | None]] = {}
    for what, name in (("prompt", "input_cov"), ("generation", "output_cov")):
        cumulative: dict[tuple[str, str], dict[float, float]] = {}
        totals: dict[tuple[str, str], float] = {}
        for labels, value in _values(query(lengths_promql(what, models, window))):
            place = (labels.get("model_name", ""), labels.get("namespace", ""))
            if "le" in labels:
                cumulative.setdefault(place, {})[_bucket_end(labels["le"])] = value
            else:
                totals[place] = value
        for place, counts in cumulative.items():
            cov = coefficient_of_variation(counts, totals.get(place, 0.0))
            found.setdefault(place, {})[name] = cov
    return tuple(Spread(model, namespace, **covs) for (model, namespace), covs in sorted(found.items()))


def _bucket_end(text: str) -> float:
    try:
        return float(text)
    except ValueError as error:
        raise PrometheusError(f"Prometheus has a bucket up to {text!r}") from error


def _by_model(values: Iterable[tuple[dict[str, str], float]]) -> dict[tuple[str, str], float]:
    """Sum the elements by model and namespace, each under whatever label names it."""
    sums: dict[tuple[str, str], float] = {}
    for labels, value in values:
        model = next((labels[name] for name in _MODEL_LABELS if labels.get(name)), "")
        place = (model, labels.get("namespace", ""))
        sums[place] = sums.get(place, 0.0) + value
    return sums


def _values(vector: Vector) -> list[tuple[dict[str, str], float]]:
    """Labels and value of each element that is a number; rates of nothing are NaN."""
    found = []
    for element in vector:
        try:
            value = float(element["value"][1])
            labels = dict(element["metric"])
        except (KeyError, IndexError, TypeError, ValueError) as error:
            raise PrometheusError(f"Prometheus answers no instant vector: {element!r}") from error
        if math.isfinite(value):
            found.append((labels, value))
    return found

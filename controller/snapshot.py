"""What a pass sees: variants, their workloads, the traffic, the GPUs and the configuration, at one time.

Rates are in requests/min and latencies in ms, as the system JSON has them; the queries of
`controller.collect` convert.
"""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from controller.crd import ACCELERATOR_LABEL
from controller.inventory import PRODUCT_LABELS, spec_gpus

if TYPE_CHECKING:
    from collections.abc import Mapping

    from controller.configmaps import AcceleratorCost, ClassEntry, ZeroRule
    from controller.crd import Variant, VariantKey
    from controller.inventory import Inventory
    from controller.settings import Settings
    from solver.schema import ModelProfile


@dataclass(frozen=True)
class Workload:
    """The scale target of a variant.

    Attributes
    ----------
    replicas : int
        Replicas asked for; pods on their way count.
    ready : int
        Replicas that serve.
    uid : str
    pods : frozenset of str
        Names of its pods.
    pinned_accelerator : str
        Name of the accelerator that it is pinned to by label; empty: none.
    pinned_device : str
        Device that its node selector asks for; empty: none.
    gpus_per_replica : int
        Cards that one pod asks for; 0: not known.
    max_num_seqs : int or None
        Batch limit in vLLM's arguments.
    tensor_parallel : int or None
        Cards of one engine in vLLM's arguments.
    """

    replicas: int
    ready: int
    uid: str = ""
    pods: frozenset[str] = frozenset()
    pinned_accelerator: str = ""
    pinned_device: str = ""
    gpus_per_replica: int = 0
    max_num_seqs: int | None = None
    tensor_parallel: int | None = None


@dataclass(frozen=True)
class Signal:
    """What one source of series (a pod, or all pods of a model) was seen to do.

    Attributes
    ----------
    model : str
    namespace : str
        Empty where the series have no such label.
    pod : str
        Empty where the series have no such label.
    completed_rpm : float
        Requests/min that ended well.
    growth_rpm : float
        Growth of running and waiting requests, requests/min; negative while a queue drains.
    in_flight : float
        Requests running and waiting.
    input_tokens, output_tokens : float or None
        Means of a request; None: none ended in the window.
    ttft_ms, itl_ms : float or None
    age_s : float
        Age of the newest sample.
    """

    model: str
    namespace: str
    pod: str
    completed_rpm: float
    growth_rpm: float = 0.0
    in_flight: float = 0.0
    input_tokens: float | None = None
    output_tokens: float | None = None
    ttft_ms: float | None = None
    itl_ms: float | None = None
    age_s: float = 0.0


@dataclass(frozen=True)
class Demand:
    """What a gateway says about a model: arrivals that it counted, requests that it holds back.

    Attributes
    ----------
    model : str
    namespace : str
        Empty where the series have no such label.
    arrival_rpm : float or None
        None: it counts none.
    queued : float
        Requests that wait for a server.
    growth_rpm : float
        Growth of these, requests/min; negative while they go to servers.
    """

    model: str
    namespace: str
    arrival_rpm: float | None = None
    queued: float = 0.0
    growth_rpm: float = 0.0


@dataclass(frozen=True)
class Spread:
    """How much the lengths of a model's requests vary.

    Attributes
    ----------
    model : str
    namespace : str
        Empty where the series have no such label.
    input_cov, output_cov : float or None
        Coefficients of variation of the tokens; None: not known.
    """

    model: str
    namespace: str
    input_cov: float | None = None
    output_cov: float | None = None


@dataclass(frozen=True)
class Traffic:
    """What Prometheus answered.

    Attributes
    ----------
    signals : tuple of Signal
    demands : tuple of Demand
    spreads : tuple of Spread
        Of the models whose law asks for them.
    problems : tuple of str
        What could not be asked, in words.
    """

    signals: tuple[Signal, ...] = ()
    demands: tuple[Demand, ...] = ()
    spreads: tuple[Spread, ...] = ()
    problems: tuple[str, ...] = ()


@dataclass(frozen=True)
class Configuration:
    """What the ConfigMaps say.

    Attributes
    ----------
    settings : Settings
    accelerators : tuple of AcceleratorCost
    classes : tuple of ClassEntry
    profiles : tuple of ModelProfile
    capacity : mapping of str to int
        Upper limits of cards, by device or accelerator.
    zero_rules : tuple of ZeroRule
        Models that may have no replicas.
    problems : tuple of str
        What could not be used, in words.
    """

    settings: Settings
    accelerators: tuple[AcceleratorCost, ...] = ()
    classes: tuple[ClassEntry, ...] = ()
    profiles: tuple[ModelProfile, ...] = ()
    capacity: Mapping[str, int] = field(default_factory=dict)
    zero_rules: tuple[ZeroRule, ...] = ()
    problems: tuple[str, ...] = ()


@dataclass(frozen=True)
class Snapshot:
    """All that a pass decides from.

    Attributes
    ----------
    variants : tuple of Variant
        By key.
    workloads : mapping of VariantKey to Workload
        A variant whose target was not found is not in it.
    foreign_pods : frozenset of (str, str)
        Namespace and name of pods that belong to no variant.
    configuration : Configuration
    traffic : Traffic
    inventory : Inventory or None
        None: nodes could not be read, nor were they lately.
    nodes_readable : bool
        Whether the nodes were read in this pass.
    woken : frozenset of (str, str)
        Namespace and model of which a wake-up was asked for.
    """

    variants: tuple[Variant, ...]
    workloads: Mapping[VariantKey, Workload]
    configuration: Configuration
    traffic: Traffic
    inventory: Inventory | None
    nodes_readable: bool = True
    foreign_pods: frozenset[tuple[str, str]] = frozenset()
    woken: frozenset[tuple[str, str]] = frozenset()


def workload_of(target: Mapping[str, Any], pods: frozenset[str] = frozenset()) -> Workload:
    """Read a Deployment, or an object of the same shape, as JSON.

    Parameters
    ----------
    target : mapping
    pods : frozenset of str
        Names of its pods.
    """
    spec, status = target.get("spec") or {}, target.get("status") or {}
    template = spec.get("template") or {}
    pod_spec = template.get("spec") or {}
    labels = {
        **((template.get("metadata") or {}).get("labels") or {}),
        **(target["metadata"].get("labels") or {}),
    }
    words = _words(pod_spec)
    return Workload(
        replicas=int(spec.get("replicas", 1)),
        ready=int(status.get("readyReplicas") or 0),
        uid=target["metadata"].get("uid", ""),
        pods=pods,
        pinned_accelerator=labels.get(ACCELERATOR_LABEL, ""),
        pinned_device=_pinned_device(pod_spec),
        gpus_per_replica=spec_gpus(pod_spec),
        max_num_seqs=_argument(words, "max-num-seqs"),
        tensor_parallel=_argument(words, "tensor-parallel-size", short="-tp"),
    )


def _pinned_device(pod_spec: Mapping[str, Any]) -> str:
    """Return the only device that node selector or required node affinity allow; empty: several, or any."""
    selector = pod_spec.get("nodeSelector") or {}
    for label in PRODUCT_LABELS:
        if selector.get(label):
            return str(selector[label])
    affinity = ((pod_spec.get("affinity") or {}).get("nodeAffinity") or {}).get(
        "requiredDuringSchedulingIgnoredDuringExecution"
    ) or {}
    # The terms are alternatives; only one term that names one device pins.
    terms = affinity.get("nodeSelectorTerms") or []
    if len(terms) != 1:
        return ""
    for expression in terms[0].get("matchExpressions") or []:
        values = expression.get("values") or []
        if (
            expression.get("key") in PRODUCT_LABELS
            and expression.get("operator") == "In"
            and len(values) == 1
        ):
            return str(values[0])
    return ""


def _words(pod_spec: Mapping[str, Any]) -> list[str]:
    """Command and arguments of all containers as words; a command line is split as a shell would."""
    words: list[str] = []
    for container in pod_spec.get("containers") or []:
        for text in [*(container.get("command") or []), *(container.get("args") or [])]:
            if not re.search(r"\s", text):
                words.append(text)
                continue
            try:
                words.extend(shlex.split(text))
            except ValueError:
                # A text with an open quote is no command line.
                words.append(text)
    return words


def _argument(words: list[str], name: str, short: str = "") -> int | None:
    """Return the last value of ``--name N`` or ``--name=N``; vLLM takes underscores for hyphens as well."""
    value: str | None = None
    for index, word in enumerate(words):
        option, equals, text = word.partition("=")
        if option.replace("_", "-") != f"--{name}" and (not short or option != short):
            continue
        value = text if equals else next(iter(words[index + 1 : index + 2]), None)
    return int(value) if value is not None and value.isdecimal() and int(value) > 0 else None

"""The wire: a system in, an allocation and a report out.

The input is the system JSON of llm-inferno/optimizer in its three generations, with additions of fleetopt;
docs/wire.md has the tables. Attributes carry their unit in the name. The key on the wire is the attribute in
camel case without the unit (`itl_average_ms` is ``itlAverage``), unless the field says otherwise.

::

    bytes -> decode -> Document -> validate -> reference problems -> InputError, or System and warnings
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import (
    AfterValidator,
    AliasChoices,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    model_validator,
)
from pydantic.alias_generators import to_camel
from pydantic_core import PydanticCustomError

from solver.errors import InputError, Problem
from solver.wire_parse import Document, Shape, collector_paused, decode
from solver.wire_references import reference_problems, warnings_about

# A unit at the end of an attribute's name is no part of the key.
_UNIT = re.compile(r"_(cents_per_h|gb_per_s|gb|rps|rpm|ms|s|w)$")


def _camel(attribute: str) -> str:
    return to_camel(_UNIT.sub("", attribute))


def _kebab(attribute: str) -> str:
    return _UNIT.sub("", attribute).replace("_", "-")


class Wire(BaseModel):
    """Base of the wire types: immutable, built by attribute name, written by key, NaN written as null."""

    model_config = ConfigDict(
        alias_generator=_camel,
        validate_by_name=True,
        validate_by_alias=True,
        serialize_by_alias=True,
        frozen=True,
        ser_json_inf_nan="null",
    )


# The upper limits keep products of inputs inside 64-bit integers and far from the end of floats.
Name = Annotated[str, Field(min_length=1)]
Amount = Annotated[float, Field(ge=0, le=1e12, allow_inf_nan=False)]
Positive = Annotated[float, Field(gt=0, le=1e12, allow_inf_nan=False)]
Percentile = Annotated[float, Field(ge=0.5, le=0.999, allow_inf_nan=False)]
Dispersion = Annotated[float, Field(gt=0, le=1e6, allow_inf_nan=False)]
Whole = Annotated[int, Field(ge=0, le=1_000_000_000)]
Batch = Annotated[int, Field(ge=0, le=65_536)]
# As the reference: a count that cannot be 0 is 1 where it is given as 0.
Count = Annotated[int, Field(ge=0, le=1_000_000), AfterValidator(lambda count: count or 1)]

# Least time of one iteration with one request, in ms; it keeps rates finite.
LEAST_TIME_MS = 1e-6

# Marks an optional key that the JSON leaves out rather than writes as null.
_LEFT_OUT = Field(exclude_if=lambda value: value is None)


def _broken_rule(expected: str, key: str | None = None) -> PydanticCustomError:
    """Error of a rule over several fields; the problem is at `key`, or at the object itself."""
    return PydanticCustomError("rule", "{expected}", {"expected": expected} | ({"key": key} if key else {}))


# --- accelerators and capacity ---


class Power(Wire):
    """Power of one card; not used by the optimisation."""

    idle_w: Amount = Field(default=0.0, description="power when idle, W")
    full_w: Amount = Field(default=0.0, description="power at full utilisation, W")
    mid_power_w: Amount = Field(default=0.0, description="power at the inflection point, W")
    mid_util: Amount = Field(default=0.0, description="utilisation at the inflection point, 0..1")


class Accelerator(Wire):
    """A unit that can be bought or reserved: one card, or several of one type."""

    name: Name = Field(description="name of the accelerator")
    type: str = Field(
        default_factory=lambda given: given["name"],
        min_length=1,
        description="GPU type, which capacityData counts; absent: the name",
    )
    multiplicity: Count = Field(default=1, description="cards of the type in one unit")
    mem_size_gb: Amount = Field(default=0.0, description="memory of one unit, GB")
    mem_bw_gb_per_s: Amount = Field(
        default=0.0,
        validation_alias="memBW",
        serialization_alias="memBW",
        description="memory bandwidth of one unit, GB/s",
    )
    power: Power = Field(default_factory=Power, description="power of one card")
    cost_cents_per_h: Amount = Field(default=0.0, description="cost of one unit, cents/h")


class AcceleratorData(Wire):
    """The accelerators."""

    accelerators: list[Accelerator] = Field(
        default_factory=list, description="the accelerators there are to choose from"
    )


class GpuCount(Wire):
    """How many cards of a type there are."""

    type: Name = Field(description="GPU type")
    count: Whole = Field(description="cards of the type")


class Node(Wire):
    """A machine with free cards: a replica runs on one node, so its cards must be free on one node."""

    name: Name = Field(description="name of the node")
    type: Name = Field(description="GPU type of its cards")
    count: Whole = Field(description="free cards")


class CapacityData(Wire):
    """The GPUs there are. Where a type has a count and nodes, both limit it."""

    count: list[GpuCount] = Field(
        default_factory=list, description="cards by type; a type that is neither here nor in nodes has none"
    )
    nodes: list[Node] = Field(
        default_factory=list, description="fleetopt: the nodes, where it matters which cards are together"
    )


# --- models ---


class DecodeParms(Wire):
    """Decode time of one token: ``alpha + beta n`` with n requests in the batch."""

    alpha_ms: Amount = Field(description="decode time at an empty batch, ms")
    beta_ms: Amount = Field(description="decode time more for each request in the batch, ms")


class PrefillParms(Wire):
    """Prefill time: ``gamma + delta x input tokens x n`` with n requests in the batch."""

    gamma_ms: Amount = Field(description="prefill time without tokens, ms")
    delta_ms: Amount = Field(
        description="prefill time more for each input token and request in the batch, ms"
    )


class PerfParms(Wire):
    """Time of one iteration: ``alpha + n x (beta per token + gamma per token read from the KV cache)``.

    The optional parameters are fleetopt's: a prompt token may cost otherwise than an output token, a prompt
    takes some time however short it is, and a mixture of experts reads the weights of the experts in use.
    """

    alpha_ms: Amount = Field(description="time of an iteration without work, ms")
    beta_ms: Amount = Field(description="compute time of a token, ms")
    gamma_ms: Amount = Field(description="time to read one token of the KV cache, ms")
    beta_prefill_ms: Amount | None = Field(
        default=None, description="fleetopt: compute time of a prompt token, ms; absent: beta"
    )
    prefill_floor_ms: Amount = Field(default=0.0, description="fleetopt: least time of a prompt, ms")
    epsilon_ms: Amount = Field(
        default=0.0, description="fleetopt: time to read the weights of all experts, ms"
    )
    expert_fraction: Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)] = Field(
        default=0.0, description="fleetopt: share of the experts that a token uses, 0..1"
    )


Law = Literal[0, 1, 2, 3]
QueueModel = Literal["reference", "moments"]

LAW_FORMS = "exactly one of: alpha and beta; decodeParms and prefillParms; perfParms; ratePerReplica"


class ModelProfile(Wire):
    """How fast a model is on an accelerator: one law of service time, told by which keys there are."""

    name: Name = Field(description="name of the model")
    acc: Name = Field(description="name of the accelerator")
    acc_count: Count = Field(default=1, description="units of the accelerator that a replica takes")
    max_batch_size: Batch = Field(default=0, description="largest batch, at requests of atTokens tokens")
    at_tokens: Whole = Field(default=0, description="tokens of a request for which maxBatchSize holds")
    weight_size_gb: Amount = Field(
        default=0.0, description="fleetopt: all weights, GB; with the next and memSize it limits the batch"
    )
    kv_bytes_per_token: Amount = Field(
        default=0.0, description="fleetopt: KV cache of a token in a replica, bytes; 0: no limit by memory"
    )
    queue_model: QueueModel | None = Field(
        default=None, description="fleetopt: queue model of law 3; absent: that of the optimizer's options"
    )
    overhead_ms: Amount = Field(
        default=0.0, description="fleetopt: added to every TTFT, ms (queueModel moments)"
    )
    batch_sizes: list[Annotated[int, Field(ge=1, le=65_536)]] = Field(
        default_factory=list, description="fleetopt: batch limits to choose from; empty: the largest one only"
    )
    alpha_ms: Amount | None = Field(default=None, description="law 1: token time at an empty batch, ms")
    beta_ms: Amount | None = Field(
        default=None, description="law 1: token time more for each request in the batch, ms"
    )
    decode_parms: DecodeParms | None = Field(default=None, description="law 2: decode time")
    prefill_parms: PrefillParms | None = Field(default=None, description="law 2: prefill time")
    perf_parms: PerfParms | None = Field(default=None, description="law 3: iteration time")
    rate_per_replica_rps: Annotated[float, Field(ge=1e-9, le=1e9, allow_inf_nan=False)] | None = Field(
        default=None,
        description="fleetopt: the rate that one replica serves within the targets, requests/s, as measured",
    )

    @property
    def law(self) -> Law:
        """1, 2 or 3 (docs/formulation.md), or 0 for a capacity that was measured."""
        if self.alpha_ms is not None:
            return 1
        if self.decode_parms is not None:
            return 2
        return 3 if self.perf_parms is not None else 0

    @model_validator(mode="after")
    def _one_law(self) -> Self:
        pairs = (
            ("alpha", self.alpha_ms, "beta", self.beta_ms),
            ("decodeParms", self.decode_parms, "prefillParms", self.prefill_parms),
        )
        for first, one, second, other in pairs:
            if (one is None) != (other is None):
                raise _broken_rule(
                    f"required: {first} and {second} come together", first if one is None else second
                )
        forms = (self.alpha_ms, self.decode_parms, self.perf_parms, self.rate_per_replica_rps)
        if sum(form is not None for form in forms) != 1:
            raise _broken_rule(LAW_FORMS)
        for key, law in (("alpha", self), ("decodeParms", self.decode_parms), ("perfParms", self.perf_parms)):
            if law is None or law.alpha_ms is None or law.beta_ms is None:
                continue
            if law.alpha_ms + law.beta_ms < LEAST_TIME_MS:
                raise _broken_rule(f"alpha + beta of at least {LEAST_TIME_MS:g} ms: a token takes time", key)
        return self


class ModelData(Wire):
    """The profiles."""

    models: list[ModelProfile] = Field(
        default_factory=list, description="one profile for each model and accelerator"
    )


# --- headroom ---

HEADROOM_FORMS = (
    "a factor on the demand, of at least 1, or an object with a percentile of it such as "
    '{"percentile": 0.95, "dispersion": 2, "window": 60}'
)


class Headroom(Wire):
    """Demand to have in reserve: a factor on the mean rate, or a percentile of what arrives in a window.

    On the wire a factor is also written as the number alone.
    """

    factor: Annotated[float, Field(ge=1, le=1000, allow_inf_nan=False)] | None = Field(
        default=None, description="factor on the demand"
    )
    percentile: Percentile | None = Field(
        default=None, description="share of the windows whose demand is served, 0.5..0.999"
    )
    dispersion: Dispersion = Field(
        default=1.0,
        description="variance over mean of the requests that arrive in a window, where the load has no "
        "arrivalDispersion; 1: a Poisson process",
    )
    window_s: Annotated[float, Field(ge=1e-3, le=1e9, allow_inf_nan=False)] = Field(
        default=60.0, description="length of the window, s"
    )

    @model_validator(mode="after")
    def _one_form(self) -> Self:
        if (self.factor is None) == (self.percentile is None):
            raise _broken_rule(HEADROOM_FORMS)
        return self


def _headroom_form(given: Any) -> Any:
    """Read a number, which may be text as everywhere, as the factor."""
    if isinstance(given, dict | Headroom) or given is None:
        return given
    try:
        factor = float(given)
    except (TypeError, ValueError):
        factor = 0.0
    if not 1.0 <= factor <= 1000.0:
        raise _broken_rule(HEADROOM_FORMS)
    return {"factor": factor}


HeadroomForm = Annotated[
    Headroom | None, BeforeValidator(_headroom_form, json_schema_input_type=float | Headroom | None)
]


# --- service classes ---


class ModelTarget(Wire):
    """What a service class promises for a model; 0 or absent = no target."""

    model_config = ConfigDict(alias_generator=_kebab)

    model: Name = Field(description="name of the model")
    slo_itl_ms: Amount = Field(
        default=0.0,
        validation_alias=AliasChoices("slo-itl", "slo-tpot"),
        serialization_alias="slo-itl",
        description="inter-token latency, mean, ms",
    )
    slo_ttft_ms: Amount = Field(default=0.0, description="time to first token, ms")
    slo_ttw_ms: Amount = Field(default=0.0, description="waiting time, ms (law 1)")
    slo_tps: Amount = Field(default=0.0, description="throughput, tokens/s")
    slo_percentile: Percentile | None = Field(
        default=None,
        description="fleetopt: share of requests within slo-ttft and slo-ttw, 0.5..0.999; absent: the mean",
    )

    @property
    def is_empty(self) -> bool:
        """Whether nothing is promised."""
        return not (self.slo_itl_ms or self.slo_ttft_ms or self.slo_ttw_ms or self.slo_tps)


class ServiceClass(Wire):
    """A class of service with its targets by model.

    The mid-2025 form, one entry for each (class, model) with the targets beside the name, is read too.
    """

    inline: ClassVar[str] = "modelTargets"

    name: Name = Field(description="name of the class")
    priority: Annotated[int, Field(ge=-1_000_000_000, le=1_000_000_000)] = Field(
        default=100, description="1 = most important .. 100 = least; anything else counts as 100"
    )
    model_targets: list[ModelTarget] = Field(default_factory=list, description="targets by model")
    headroom: HeadroomForm = Field(
        default=None, description="fleetopt: demand in reserve; absent: that of the optimizer's options"
    )


class ServiceClassData(Wire):
    """The service classes."""

    service_classes: list[ServiceClass] = Field(default_factory=list, description="the service classes")


# --- servers ---


class Load(Wire):
    """What arrives at a server."""

    arrival_rate_rpm: Amount = Field(default=0.0, description="requests/min")
    avg_length: Annotated[Amount | None, _LEFT_OUT] = Field(
        default=None, description="tokens of a request (law 1)"
    )
    avg_in_tokens: Annotated[Amount | None, _LEFT_OUT] = Field(
        default=None, description="input tokens of a request"
    )
    avg_out_tokens: Annotated[Amount | None, _LEFT_OUT] = Field(
        default=None, description="output tokens of a request"
    )
    arrival_cov: Annotated[Amount | None, _LEFT_OUT] = Field(
        default=None,
        validation_alias="arrivalCOV",
        serialization_alias="arrivalCOV",
        description="coefficient of variation of the times between arrivals",
    )
    service_cov: Annotated[Amount | None, _LEFT_OUT] = Field(
        default=None,
        validation_alias="serviceCOV",
        serialization_alias="serviceCOV",
        description="coefficient of variation of the service times",
    )
    in_tokens_cov: Annotated[Amount | None, _LEFT_OUT] = Field(
        default=None,
        validation_alias="inTokensCOV",
        serialization_alias="inTokensCOV",
        description="fleetopt: coefficient of variation of the input tokens (queueModel moments)",
    )
    out_tokens_cov: Annotated[Amount | None, _LEFT_OUT] = Field(
        default=None,
        validation_alias="outTokensCOV",
        serialization_alias="outTokensCOV",
        description="fleetopt: coefficient of variation of the output tokens (queueModel moments)",
    )
    arrival_dispersion: Annotated[Dispersion | None, _LEFT_OUT] = Field(
        default=None,
        description="fleetopt: variance over mean of the requests that arrive in a window of the headroom",
    )
    throughput: Annotated[Amount | None, _LEFT_OUT] = Field(
        default=None, description="requests/min that were served"
    )

    @property
    def length_tokens(self) -> float:
        """Tokens of a request for law 1: `avg_length`, or the output tokens where it is 0 or absent."""
        return self.avg_length or self.avg_out_tokens or 0.0

    @property
    def in_out_tokens(self) -> tuple[float, float]:
        """Input and output tokens for laws 2 and 3; where both are 0 or absent, `avg_length` is output."""
        tokens = (self.avg_in_tokens or 0.0, self.avg_out_tokens or 0.0)
        return tokens if any(tokens) else (0.0, self.avg_length or 0.0)


class AllocPart(Wire):
    """The replicas of a server on one accelerator, where it runs on several."""

    accelerator: Name = Field(description="name of the accelerator")
    num_replicas: Whole = Field(default=0, description="replicas")
    max_batch: Whole = Field(default=0, description="batch limit of each replica")
    cost_cents_per_h: Amount = Field(default=0.0, description="cost of the replicas, cents/h")
    itl_average_ms: Amount | None = Field(
        default=0.0, description="mean inter-token latency, ms; null: not known"
    )
    ttft_average_ms: Amount | None = Field(
        default=0.0, description="mean time to first token, ms; null: not known"
    )
    load: Load = Field(default_factory=Load, description="the part of the load that they serve")


class Alloc(Wire):
    """What a server runs on, as the input gives it."""

    accelerator: str = Field(default="", description="name of the accelerator; empty: none")
    num_replicas: Whole = Field(default=0, description="replicas")
    max_batch: Whole = Field(default=0, description="batch limit of each replica")
    cost_cents_per_h: Amount = Field(default=0.0, description="cost of all replicas, cents/h")
    itl_average_ms: Amount | None = Field(
        default=0.0, description="mean inter-token latency, ms; null: not known"
    )
    ttft_average_ms: Amount | None = Field(
        default=0.0, description="mean time to first token, ms; null: not known"
    )
    wait_average_ms: Amount = Field(default=0.0, description="mean waiting time, ms (law 1)")
    load: Load = Field(default_factory=Load, description="what arrives")
    parts: list[AllocPart] = Field(
        default_factory=list, description="fleetopt: one for each accelerator, where there are several"
    )


class ReplicaLimits(Wire):
    """Least and most replicas of a server on one accelerator."""

    accelerator: Name = Field(description="name of the accelerator")
    min: Whole = Field(default=0, description="replicas that run there whatever the demand, as GPUs allow")
    max: Whole | None = Field(default=None, description="most replicas there; absent: no maximum")

    @model_validator(mode="after")
    def _least_below_most(self) -> Self:
        if self.max is not None and self.min > self.max:
            raise _broken_rule(f"a number of at most {self.max}, the max", "min")
        return self


class Server(Wire):
    """A model served for a class."""

    name: Name = Field(description="name of the server")
    class_name: Name = Field(
        validation_alias="class", serialization_alias="class", description="name of its service class"
    )
    model: Name = Field(description="name of the model it serves")
    keep_accelerator: bool = Field(default=False, description="whether it stays on the accelerator it has")
    min_num_replicas: Whole = Field(default=0, description="least replicas")
    max_num_replicas: Whole | None = Field(
        default=None, description="fleetopt: most replicas; absent: no maximum"
    )
    max_batch_size: Batch = Field(default=0, description="batch limit; 0: that of the profile")
    max_queue_size: Whole | None = Field(
        default=None,
        description="requests that may wait; 0: none, they are lost; absent: 9 batches (law 1) or 10",
    )
    weight: Annotated[float, Field(ge=1e-6, le=1e6, allow_inf_nan=False)] = Field(
        default=1.0, description="fleetopt: weight of its unserved share among the servers of its class"
    )
    max_types: Annotated[int, Field(ge=1, le=1_000_000)] | None = Field(
        default=None, description="fleetopt: most accelerators it may use, with heterogeneous"
    )
    replica_limits: list[ReplicaLimits] = Field(
        default_factory=list, description="fleetopt: limits of its replicas accelerator by accelerator"
    )
    current_alloc: Alloc = Field(default_factory=Alloc, description="what it runs on now, and its load")
    desired_alloc: dict[str, Any] | None = Field(
        default=None, description="read and ignored: the reference keeps its answer there"
    )

    @model_validator(mode="after")
    def _least_below_most(self) -> Self:
        if self.max_num_replicas is not None and self.min_num_replicas > self.max_num_replicas:
            raise _broken_rule(
                f"a number of at most {self.max_num_replicas}, the maxNumReplicas", "minNumReplicas"
            )
        kept = [limit.min for limit in self.replica_limits if limit.min]
        if self.max_num_replicas is not None and sum(kept) > self.max_num_replicas:
            raise _broken_rule(
                f"minima that add up to at most {self.max_num_replicas}, the maxNumReplicas", "replicaLimits"
            )
        if self.max_types is not None and len(kept) > self.max_types:
            raise _broken_rule(
                f"minima on at most {self.max_types} accelerators, the maxTypes", "replicaLimits"
            )
        return self

    @property
    def least_replicas(self) -> int:
        """Least replicas in all: its own minimum, and those of its accelerators together."""
        return max(self.min_num_replicas, sum(limit.min for limit in self.replica_limits))


class ServerData(Wire):
    """The servers."""

    servers: list[Server] = Field(default_factory=list, description="the servers to allocate")


# --- optimizer ---

SaturationPolicy = Literal["None", "PriorityExhaustive", "PriorityRoundRobin", "RoundRobin"]

_POLICIES = {
    name.lower(): name for name in ("None", "PriorityExhaustive", "PriorityRoundRobin", "RoundRobin")
}


def _any_case_policy(policy: Any) -> Any:
    if not isinstance(policy, str):
        return policy
    return _POLICIES.get(policy.lower(), policy) if policy else "None"


class Optimizer(Wire):
    """How to optimise."""

    unlimited: bool = Field(default=False, description="whether there are GPUs without limit")
    heterogeneous: bool = Field(
        default=False, description="whether a server may run on several accelerators at once"
    )
    milp_solver: bool = Field(
        default=False, description="read and ignored: fleetopt always solves the program"
    )
    use_cplex: bool = Field(default=False, description="read and ignored")
    delayed_best_effort: bool = Field(
        default=False,
        description="whether partial service comes after all classes have had their full service",
    )
    saturation_policy: Annotated[SaturationPolicy, BeforeValidator(_any_case_policy)] = Field(
        default="None", description="what part of a demand may be served when GPUs run short"
    )
    backend: Name | None = Field(
        default=None, description="fleetopt: highs, ortools, pyomo, pyomo:<solver> or greedy"
    )
    time_limit_s: Positive | None = Field(default=None, description="fleetopt: time for the solver, s")
    gap: Amount | None = Field(
        default=None, description="fleetopt: relative gap at which the solver may stop"
    )
    max_types_per_server: Annotated[int, Field(ge=1, le=1_000_000)] | None = Field(
        default=None, description="fleetopt: most accelerators of one server, with heterogeneous"
    )
    slo_percentile: Percentile | None = Field(
        default=None, description="fleetopt: slo-percentile of the targets that have none of their own"
    )
    switching_penalty: Annotated[float, Field(ge=0, le=1e6, allow_inf_nan=False)] = Field(
        default=0.1,
        description="fleetopt: penalty of a change of accelerator, as a share of the old and new cost",
    )
    queue_model: QueueModel = Field(
        default="reference",
        description="fleetopt: queue model of law 3: that of the reference, or the one on moments",
    )
    burstiness: bool = Field(
        default=False, description="fleetopt: whether arrivalCOV and serviceCOV scale the waiting time"
    )
    headroom: HeadroomForm = Field(
        default=None, description="fleetopt: demand in reserve, of the classes that have no own; absent: none"
    )
    verify: Literal["simulation"] | None = Field(
        default=None,
        description="fleetopt: simulation: simulate what is chosen, cut what misses its targets, solve again",
    )


class OptimizerData(Wire):
    """The optimizer's options."""

    optimizer: Optimizer = Field(default_factory=Optimizer, description="the options")


# --- the system ---


class System(Wire):
    """All that the optimisation is about."""

    accelerator_data: AcceleratorData = Field(description="the section of the accelerators")
    capacity_data: CapacityData = Field(
        default_factory=CapacityData, description="the section of the GPUs there are"
    )
    model_data: ModelData = Field(description="the section of the profiles")
    service_class_data: ServiceClassData = Field(description="the section of the service classes")
    server_data: ServerData = Field(description="the section of the servers")
    optimizer_data: OptimizerData = Field(
        default_factory=OptimizerData, description="the section of the optimizer's options"
    )


class SystemRequest(Wire):
    """The body of ``POST /optimize``; numbers may also be strings, keys in any case."""

    system: System = Field(description="the system")


_SYSTEM_SHAPE = Shape.of(System)
_REQUEST_SHAPE = Shape.of(SystemRequest)


@dataclass(frozen=True)
class Parsed:
    """A system that is sound, and what about it is worth knowing.

    Attributes
    ----------
    system : System
        Each class once, its priority in 1..100.
    warnings : list of str
        Each begins with a JSON path.
    """

    system: System
    warnings: list[str]


def parse_system(body: bytes | str | dict[str, Any], *, strict: bool = False) -> Parsed:
    """Read a system JSON of any generation.

    Parameters
    ----------
    body : bytes, str or dict
        JSON text, or what `json.loads` makes of it; with the outer ``system`` or without.
    strict : bool
        Whether an unknown key is an error instead of a warning.

    Raises
    ------
    InputError
        With all problems of the document: of shape and, as far as the shape lets see them, of references.
    """
    with collector_paused():
        return _parsed(body if isinstance(body, dict) else decode(body), strict)


def _parsed(raw: Any, strict: bool) -> Parsed:
    """`parse_system` of a JSON value."""
    if not isinstance(raw, dict):
        raise InputError([Document(raw, _SYSTEM_SHAPE).problem((), "an object: the system")])
    if any(_REQUEST_SHAPE.name(key) for key in raw):
        document = Document(raw, _REQUEST_SHAPE)
        request, problems = document.validate(SystemRequest)
        system = request.system if request else None
        root: tuple[str, ...] = ("system",)
    else:
        document = Document(raw, _SYSTEM_SHAPE)
        system, problems = document.validate(System)
        root = ()
    problems += reference_problems(document, root)
    if strict:
        unknown = document.unknown()
        problems += [Problem(pattern, "", f"a key that is known{hint}") for pattern, hint, _ in unknown]
    if problems or system is None:
        raise InputError(problems)
    warnings = warnings_about(document, root, system)
    classes = ServiceClassData(service_classes=merged_classes(system.service_class_data.service_classes))
    return Parsed(system.model_copy(update={"service_class_data": classes}), warnings)


def merged_classes(entries: list[ServiceClass]) -> list[ServiceClass]:
    """One class for each name, in order of first mention, with the targets of all its entries.

    An entry that gives no priority has that of the others; a priority outside 1..100 is 100.
    """
    priorities: dict[str, int] = {}
    headrooms: dict[str, Headroom] = {}
    targets: dict[str, list[ModelTarget]] = {}
    for entry in entries:
        targets.setdefault(entry.name, []).extend(entry.model_targets)
        if "priority" in entry.model_fields_set:
            priorities[entry.name] = entry.priority if 1 <= entry.priority <= 100 else 100
        if entry.headroom is not None:
            headrooms[entry.name] = entry.headroom
    return [
        ServiceClass(
            name=name,
            priority=priorities.get(name, 100),
            model_targets=its,
            headroom=headrooms.get(name),
        )
        for name, its in targets.items()
    ]


# --- answers ---


class Allocation(Wire):
    """What a server is to run on."""

    accelerator: str = Field(
        description="name of the accelerator; of several, the one with most load; empty: none"
    )
    num_replicas: int = Field(description="replicas")
    max_batch: int = Field(description="batch limit of each replica")
    cost_cents_per_h: float = Field(description="cost of all replicas, cents/h")
    itl_average_ms: float | None = Field(
        description="mean inter-token latency at the load that is served, ms; null: not known"
    )
    ttft_average_ms: float | None = Field(
        description="mean time to first token, ms (law 1: the mean wait); null: not known"
    )
    wait_average_ms: Annotated[float | None, _LEFT_OUT] = Field(
        default=None, description="mean waiting time, ms (law 1 only)"
    )
    load: Load = Field(description="the load that is served, in the keys of the input")
    parts: Annotated[list[AllocPart] | None, _LEFT_OUT] = Field(
        default=None, description="one for each accelerator, only where there are several"
    )


class Level(Wire):
    """One level of the lexicographic objective."""

    name: str = Field(description="whom it is about")
    kind: str = Field(description="what it minimises")
    value: float | None = Field(description="what was reached")
    bound: float | None = Field(description="what no allocation can be below")


class Unserved(Wire):
    """A server whose demand is not met, in full or in part."""

    server: str = Field(description="name of the server")
    service_class: str = Field(description="name of its class")
    priority: int = Field(description="priority of its class")
    unserved_share: float = Field(description="share of its demand that is not served, 0..1")
    reason: Literal["gpus", "targets", "noProfile", "keepAccelerator", "maxReplicas"] = Field(
        description="gpus: there are too few; targets: no accelerator meets them at any rate; noProfile: no "
        "accelerator has a profile of its model; keepAccelerator: the one it must keep does not serve; "
        "maxReplicas: too few are allowed"
    )
    detail: str = Field(description="the same in words, with figures")


class CardRange(Wire):
    """From how many cards of a type to how many; both included."""

    least: int = Field(description="fewest cards")
    most: int = Field(description="most cards")


class ValueOfOneMoreGpu(Wire):
    """What one more card of a type is worth; null where it is not known."""

    cost_per_hour: float | None = Field(description="cost saved, cents/h")
    unserved_share: float | None = Field(description="unserved share that would be served")
    cost_range: Annotated[CardRange | None, _LEFT_OUT] = Field(
        default=None,
        description="cards of the type for which costPerHour is that, those of other types as they are; "
        "absent: not known, or nothing is saved",
    )
    unserved_range: Annotated[CardRange | None, _LEFT_OUT] = Field(
        default=None, description="the same for unservedShare"
    )


class InventoryUse(Wire):
    """GPUs of one type."""

    type: str = Field(description="GPU type")
    used: int = Field(description="cards that the allocation uses")
    available: int | None = Field(description="cards there are; null: unlimited")
    binding: bool = Field(description="whether their number limits the answer")
    value_of_one_more_gpu: ValueOfOneMoreGpu | None = Field(description="what one more card is worth")
    basis: str = Field(description="how the value was found")


class Explanation(Wire):
    """Why a server does not run on an accelerator at a batch limit."""

    accelerator: str = Field(description="name of the accelerator")
    max_batch: int | None = Field(description="batch limit; null: none was tried")
    num_replicas: int | None = Field(
        description="replicas that the server would need; null: no number serves it"
    )
    cost_cents_per_h: float | None = Field(description="their cost, cents/h")
    reason: Literal[
        "targetMissed",
        "inventory",
        "dominated",
        "dearer",
        "keepAccelerator",
        "maxReplicas",
        "switchingPenalty",
        "memory",
    ] = Field(description="why not")
    detail: str = Field(description="the same in words, with figures")


class Latencies(Wire):
    """Latencies of one replica, ms; null where they are not known."""

    itl_average_ms: float | None = Field(description="mean inter-token latency, ms")
    ttft_average_ms: float | None = Field(description="mean time to first token, ms")
    ttft_p95_ms: float | None = Field(
        serialization_alias="ttftP95",
        validation_alias="ttftP95",
        description="95th percentile of the time to first token, ms",
    )


class VerifiedOption(Wire):
    """What a server got on an accelerator, simulated at its load."""

    server: str = Field(description="name of the server")
    accelerator: str = Field(description="name of the accelerator")
    max_batch: int = Field(description="batch limit of each replica")
    arrival_rate_per_replica_rpm: float = Field(description="rate that was simulated, requests/min")
    verdict: Literal["met", "missed", "unverified"] = Field(
        description="met: the upper end of every interval is within its target; missed: it is not; "
        "unverified: not simulated, or not to the end"
    )
    detail: str = Field(description="the same in words, with figures")
    model: Latencies = Field(description="what the performance model says")
    simulated: Latencies | None = Field(description="what the simulation says; null: not simulated")
    itl_half_width_ms: float | None = Field(
        description="half the width of the interval of the simulated mean, ms"
    )
    ttft_half_width_ms: float | None = Field(
        description="half the width of the interval of the simulated mean, ms"
    )
    requests: int = Field(description="requests that were simulated; 0: none")


class Cut(Wire):
    """An option whose capacity was lowered because the simulation missed a target."""

    server: str = Field(description="name of the server")
    accelerator: str = Field(description="name of the accelerator")
    max_batch: int = Field(description="batch limit of each replica")
    capacity_rpm: float = Field(
        serialization_alias="capacityRpm",
        validation_alias="capacityRpm",
        description="largest rate of one replica by the performance model, requests/min",
    )
    simulated_rpm: float = Field(
        serialization_alias="simulatedRpm",
        validation_alias="simulatedRpm",
        description="largest rate at which the simulation meets the targets, requests/min",
    )


class Verification(Wire):
    """How the answer was checked by simulation."""

    rounds: int = Field(description="programs that were solved; 1: everything held at once")
    confidence: float = Field(description="of the intervals, 0..1")
    options: list[VerifiedOption] = Field(description="everything that was chosen")
    cuts: list[Cut] = Field(description="what was lowered on the way")


class Report(Wire):
    """How the answer came about, and how good it is proven to be."""

    termination: str = Field(description="why the solver stopped: optimal, time_limit, ...")
    backend: str = Field(description="backend that was chosen")
    solver: str = Field(description="library that solved")
    version: str = Field(description="its version")
    objective: float | None = Field(description="cost and switching penalty of the answer, cents/h")
    bound: float | None = Field(
        description="proven lower bound of the objective, cents/h; null: nothing is proven"
    )
    gap: float | None = Field(description="(objective - bound) / objective; null: nothing is proven")
    cost_cents_per_h: float = Field(description="cost of all allocations, cents/h")
    switching_penalty_cents_per_h: float = Field(description="penalty for changes of accelerator, cents/h")
    levels: list[Level] = Field(
        default_factory=list, description="the lexicographic objective, most important level first"
    )
    seconds: dict[str, float] = Field(
        default_factory=dict, description="time by stage: parse, size, solve, explain, total, s"
    )
    unserved: list[Unserved] = Field(default_factory=list, description="servers whose demand is not met")
    inventory: list[InventoryUse] = Field(default_factory=list, description="GPUs by type")
    explanations: dict[str, list[Explanation]] = Field(
        default_factory=dict, description="by server: why not the other accelerators"
    )
    verification: Annotated[Verification | None, _LEFT_OUT] = Field(
        default=None, description="what was simulated; absent: nothing"
    )
    warnings: list[str] = Field(
        default_factory=list, description="what in the input may not be what was meant"
    )


class Response(Wire):
    """The answer of ``POST /optimize``."""

    allocations: dict[str, Allocation] = Field(description="by server")
    report: Report = Field(description="how good the answer is, and why")


class Candidate(Wire):
    """A server on an accelerator at a batch limit, sized for the server's targets."""

    server: str = Field(description="name of the server")
    accelerator: str = Field(description="name of the accelerator")
    max_batch: int = Field(description="batch limit of a replica")
    max_queue: int = Field(description="requests that may wait at a replica")
    law: int = Field(description="law of its profile; 0: a capacity that was measured")
    capacity_rpm: float = Field(
        serialization_alias="capacityRpm",
        validation_alias="capacityRpm",
        description="largest rate of one replica that meets the targets, requests/min",
    )
    num_replicas: int | None = Field(description="replicas for the server's load; null: no number serves it")
    cost_cents_per_h: float | None = Field(description="their cost, cents/h; null: no number serves it")
    feasible: bool = Field(description="whether the targets can be met at all")
    limit: str = Field(description="what limits the capacity, or which target is missed at any rate")
    reason: str = Field(description="the same in words, with figures")
    arrival_rate_per_replica_rpm: float | None = Field(
        description="rate for which the figures below are, requests/min"
    )
    itl_average_ms: float | None = Field(description="mean inter-token latency, ms")
    ttft_average_ms: float | None = Field(description="mean time to first token, ms (law 1: the mean wait)")
    wait_average_ms: float | None = Field(description="mean waiting time, ms")
    throughput_rpm: float | None = Field(description="requests served, requests/min")
    occupancy: float | None = Field(description="mean number of requests in service")
    utilization: float | None = Field(description="share of time that the replica is not idle, 0..1")
    loss_probability: float | None = Field(description="share of requests that find the queue full, 0..1")


class AnalyzeResponse(Wire):
    """The answer of ``POST /analyze`` and ``POST /size``."""

    candidates: list[Candidate] = Field(description="one for each server, accelerator and batch limit")


class ProblemDetail(Wire):
    """One thing wrong with a request."""

    path: str = Field(description="JSON path of the body, or ?option of the query")
    value: str = Field(description="the value as JSON text, shortened; empty when there is none")
    expected: str = Field(description="what would be right")


class ErrorResponse(Wire):
    """The answer when there is no other."""

    error: str = Field(description="what went wrong")
    problems: list[ProblemDetail] = Field(default_factory=list, description="every problem of the input")


def json_schema(
    model: type[Wire],
    *,
    mode: Literal["validation", "serialization"] = "validation",
    ref_template: str = "#/$defs/{model}",
) -> dict[str, Any]:
    """Describe a wire type by its keys, with units in the descriptions; its parts are in ``$defs``.

    Parameters
    ----------
    model : type
        Such as `SystemRequest`.
    mode : {"validation", "serialization"}
        Whether it describes what is read or what is written.
    ref_template : str
        Where references point, such as ``#/components/schemas/{model}`` in an OpenAPI document.
    """
    return model.model_json_schema(by_alias=True, mode=mode, ref_template=ref_template)

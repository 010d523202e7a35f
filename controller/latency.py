"""Predicted against observed TTFT and ITL: of what runs now, at the load that it was seen to have.

::

    Analysis -> running_system -> System of what runs --HTTP /analyze--> candidates -> compared -> figures

The allocation is about what is to run, so its figures are no prediction of what was observed: replicas may
still be starting, or stay for the window of a scale-down. Here each variant is a server of its own with one
ready replica's share of its load, and without targets, so that the service says what that replica does.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from controller.options import option_of
from solver import schema

if TYPE_CHECKING:
    from collections.abc import Iterator

    from controller.analyze import Analysis
    from controller.crd import VariantKey
    from controller.load import Load
    from controller.options import Option
    from controller.snapshot import Snapshot

_CLASS = "as it is"


@dataclass(frozen=True)
class Latency:
    """Means of requests; None: not known."""

    ttft_ms: float | None = None
    itl_ms: float | None = None


@dataclass(frozen=True)
class Compared:
    """What a variant that runs does, and what its profile says that it does.

    Attributes
    ----------
    accelerator : str
    observed : Latency
    predicted : Latency
        Not known for a measured capacity, and where more arrives than the replicas can serve: then latencies
        grow for as long as that lasts.
    """

    accelerator: str
    observed: Latency
    predicted: Latency = Latency()


def running_system(analysis: Analysis, snapshot: Snapshot) -> schema.System | None:
    """Return the system of what runs: a server for each variant, named by its key; None: nothing does.

    Parameters
    ----------
    analysis : Analysis
    snapshot : Snapshot
        That the analysis is of.
    """
    running = [
        (key, option, load, snapshot.workloads[key].ready)
        for key, option, load in _running(analysis, snapshot)
        if load.arrival_rpm > 0
    ]
    if not running:
        return None
    devices = {option.wire_name: option.device for _, option, _, _ in running}
    return schema.System(
        accelerator_data=schema.AcceleratorData(
            accelerators=[
                schema.Accelerator(name=name, type=device) for name, device in sorted(devices.items())
            ]
        ),
        model_data=schema.ModelData(
            models=[
                option.profile.model_copy(update={"name": str(key), "acc": option.wire_name})
                for key, option, _, _ in running
            ]
        ),
        service_class_data=schema.ServiceClassData(
            service_classes=[
                schema.ServiceClass(
                    name=_CLASS, model_targets=[schema.ModelTarget(model=str(key)) for key, *_ in running]
                )
            ]
        ),
        server_data=schema.ServerData(
            servers=[
                schema.Server(
                    name=str(key),
                    class_name=_CLASS,
                    model=str(key),
                    current_alloc=schema.Alloc(load=load.on_the_wire(share=1 / ready)),
                )
                for key, _, load, ready in running
            ]
        ),
        optimizer_data=schema.OptimizerData(
            optimizer=schema.Optimizer(
                unlimited=True, queue_model=snapshot.configuration.settings.queue_model
            )
        ),
    )


def compared(
    analysis: Analysis, snapshot: Snapshot, response: schema.AnalyzeResponse | None
) -> dict[VariantKey, Compared]:
    """Put what was observed beside what was predicted.

    Parameters
    ----------
    analysis : Analysis
    snapshot : Snapshot
        That the analysis is of.
    response : AnalyzeResponse or None
        What the service says of `running_system`; None: nothing.
    """
    predicted: dict[str, Latency] = {}
    for candidate in response.candidates if response else ():
        # More than one replica for one replica's share: it cannot serve it, and has no steady state.
        is_steady = candidate.num_replicas == 1 and candidate.server not in predicted
        predicted[candidate.server] = (
            Latency(candidate.ttft_average_ms, candidate.itl_average_ms) if is_steady else Latency()
        )
    return {
        key: Compared(
            option.accelerator,
            Latency(load.ttft_ms or None, load.itl_ms or None),
            predicted.get(str(key), Latency()),
        )
        for key, option, load in _running(analysis, snapshot)
    }


def _running(analysis: Analysis, snapshot: Snapshot) -> Iterator[tuple[VariantKey, Option, Load]]:
    """Variants with ready replicas whose own load and accelerator are known."""
    for group in analysis.groups:
        for key, load in sorted(group.own_loads.items()):
            option = option_of(group.options, key, analysis.accelerators.get(key, ""))
            if option is not None and snapshot.workloads[key].ready:
                yield key, option, load

"""What the demo shows: a live table for people, blocks of plain text for logs, a summary at the end. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING

from demo import VARIANTS
from rich import box
from rich.console import Group
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from collections.abc import Mapping

    from demo import Demo, Target, Variant
    from rich.console import RenderableType
    from story import Seen, Story, Told, VariantSeen

_BAR, _FREE = "█", "░"


def screen(story: Story, seen: Seen, demo: Demo, elapsed_s: float) -> RenderableType:
    """Return everything at one time.

    Parameters
    ----------
    story : Story
    seen : Seen
    demo : Demo
    elapsed_s : float
        Since the story began.
    """
    return Group(
        headline(story, elapsed_s),
        variants_table(seen, demo),
        gpus_table(seen),
        _still_missing(story, seen),
        # Last, as a low window cuts off what is last.
        conditions(seen),
    )


def headline(story: Story, elapsed_s: float) -> Text:
    """Return which phase it is, in a sentence."""
    phase = story.phase
    if phase is None:
        what, sentence = "the end", "The story is over. Ctrl-C ends the cluster."
    else:
        what, sentence = f"{len(story.told) + 1}/{len(story.phases)} {phase.name}", phase.sentence
    return Text.assemble((f"[{elapsed_s:4.0f} s] {what}", "bold cyan"), "  ", (sentence, "bold"))


def variants_table(seen: Seen, demo: Demo) -> Table:
    """Return a row for each variant: the load, the replicas, latencies against targets."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    for name in ("variant", "model", "class", "on"):
        table.add_column(name, no_wrap=True)
    for name in (
        "req/s",
        "replicas\nwant/has/ready",
        "TTFT ms\npred./seen/SLO",
        "ITL ms\npred./seen/SLO",
    ):
        table.add_column(name, justify="right", no_wrap=True)
    for variant in VARIANTS:
        if variant.name in seen.variants:
            its, target = seen.variants[variant.name], demo.targets[variant.model]
            table.add_row(*_row(variant, its, target), style="" if its.ready == its.desired else "yellow")
    return table


def _row(variant: Variant, seen: VariantSeen, target: Target) -> tuple[str, ...]:
    wanted = "-" if seen.desired is None else str(seen.desired)
    return (
        variant.name,
        variant.model,
        target.service_class,
        variant.accelerator,
        f"{seen.arrival_rps:.1f}",
        f"{wanted}/{seen.current}/{seen.ready}",
        _latency(seen.ttft_ms, target.ttft_ms),
        _latency(seen.itl_ms, target.itl_ms),
    )


def _latency(found: Mapping[str, float], target_ms: float) -> str:
    values = (f"{found[kind]:.0f}" if kind in found else "-" for kind in ("predicted", "observed"))
    return "/".join((*values, f"{target_ms:.0f}"))


def conditions(seen: Seen) -> Text:
    """Return what the condition OptimizationReady of each variant says."""
    text = Text()
    for name, variant in seen.variants.items():
        is_good = variant.reason == "OptimizationSucceeded"
        text.append(f"{name}: ", style="bold")
        text.append(variant.reason or "no condition yet", style="" if is_good else "red")
        text.append(f": {variant.message}\n" if variant.message else "\n", style="dim")
    return text


def gpus_table(seen: Seen) -> Table:
    """Return used and total cards of each type, and what they cost."""
    table = Table(box=None, pad_edge=False, show_header=False)
    for name, (used, there) in seen.gpus.items():
        bar = Text(_BAR * used, style="red" if used >= there else "green")
        bar.append(_FREE * (there - used), style="dim")
        table.add_row(name, bar, f"{used}/{there} GPUs")
    table.add_row("cost", "", f"{seen.cost_cents_per_h / 100:.2f} $/h")
    return table


def _still_missing(story: Story, seen: Seen) -> Text:
    missing = story.missing(seen)
    return Text(f"waiting for: {', '.join(missing)}" if missing else "", style="dim")


def summary(story: Story) -> Table:
    """Return what was seen at the end of each phase, and whether it is what the phase tells."""
    table = Table(
        title="What was seen at the end of each phase",
        title_justify="left",
        box=box.SIMPLE_HEAD,
        pad_edge=False,
    )
    table.add_column("phase")
    table.add_column("s", justify="right")
    for variant in VARIANTS:
        table.add_column(variant.name, justify="right")
    table.add_column("GPUs", justify="right")
    table.add_column("$/h", justify="right")
    table.add_column("", overflow="fold")
    for told in story.told:
        table.add_row(*_told(told), style="" if not told.missing else "red")
    for phase in story.phases[len(story.told) :]:
        table.add_row(phase.name, *("" for _ in range(len(VARIANTS) + 3)), "not reached", style="red")
    return table


def _told(told: Told) -> tuple[str, ...]:
    seen = told.seen
    used = sum(used for used, _ in seen.gpus.values())
    there = sum(there for _, there in seen.gpus.values())
    ready = (str(seen.variants[v.name].ready) if v.name in seen.variants else "-" for v in VARIANTS)
    result = f"not seen: {', '.join(told.missing)}" if told.missing else f"✓ {told.phase.sentence}"
    return (
        told.phase.name,
        f"{told.seconds:.0f}",
        *ready,
        f"{used}/{there}",
        f"{seen.cost_cents_per_h / 100:.2f}",
        result,
    )

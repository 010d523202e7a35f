"""Answers as tables for people.

Money is shown in dollars, where the wire has cents; all else in the units of the wire. Nothing is cut: what
is too long for a terminal wraps; a file or a pipe gets lines as long as they need to be, without colour.
"""

from __future__ import annotations

from math import isnan
from typing import TYPE_CHECKING, TextIO

from rich.box import SIMPLE_HEAD
from rich.console import Console, Group
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from solver.schema import Latencies, ModelTarget
from solver.units import in_dollars

if TYPE_CHECKING:
    from collections.abc import Iterable

    from rich.console import RenderableType

    from solver.backends import BackendInfo
    from solver.schema import (
        Allocation,
        AllocPart,
        AnalyzeResponse,
        CardRange,
        InventoryUse,
        Report,
        Response,
        System,
        Verification,
    )

# As wide as any line gets: a table that is piped is read by programs, line by line.
_PIPE_COLUMNS = 10_000

# A share served counts as whole from here on; the last digit shown is 0.1 %.
_WHOLE = 0.9995


def console_for(stream: TextIO) -> Console:
    """Return a console that writes to `stream`: as wide as the terminal, or as lines need elsewhere."""
    width = None if stream.isatty() else _PIPE_COLUMNS
    return Console(file=stream, width=width, highlight=False, markup=False, emoji=False)


def answer(response: Response, system: System, *, explain: bool) -> RenderableType:
    """Lay out an answer beside the targets and loads of the system it is for.

    Parameters
    ----------
    response : Response
    system : System
    explain : bool
        Whether to say why not the other accelerators.
    """
    report = response.report
    parts: list[RenderableType] = [
        _allocations(response, system),
        "",
        _inventory(report),
        "",
        _totals(report),
    ]
    if report.unserved:
        parts += [_heading("Not fully served"), _unserved(report)]
    if report.verification is not None:
        parts += [_heading("Simulated"), _verification(report.verification)]
    if explain and report.explanations:
        parts += [_heading("Why not otherwise"), _explanations(report)]
    if report.warnings:
        parts += [
            _heading("Warnings"),
            *(Padding(Text(w), (0, 0, 0, 2), expand=False) for w in report.warnings),
        ]
    return Group(*parts)


def candidates(response: AnalyzeResponse) -> Table:
    """Lay out what `analyze` found: one row for each server, accelerator and batch limit."""
    table = _table("server", "accelerator")
    for heading in (
        "batch",
        "req/min max",
        "replicas",
        "$/h",
        "req/min",
        "ITL ms",
        "TTFT ms",
        "busy",
        "lost",
    ):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("what limits it", overflow="fold")
    for c in response.candidates:
        table.add_row(
            c.server,
            c.accelerator,
            str(c.max_batch),
            _number(c.capacity_rpm) if c.feasible else "-",
            "-" if c.num_replicas is None else str(c.num_replicas),
            _dollars(c.cost_cents_per_h),
            _number(c.arrival_rate_per_replica_rpm),
            _number(c.itl_average_ms),
            _number(c.ttft_average_ms),
            _percent(c.utilization),
            _percent(c.loss_probability),
            c.reason,
        )
    return table


def solvers(infos: Iterable[BackendInfo]) -> Table:
    """Lay out the backends."""
    table = _table("backend", "installed", "version", "proves")
    table.add_column("what it is", overflow="fold")
    for info in infos:
        yes_no = ("yes" if info.installed else "no", info.version or "-", "yes" if info.exact else "no")
        table.add_row(info.name, *yes_no, info.description)
    return table


def _allocations(response: Response, system: System) -> Table:
    targets = {
        (c.name, t.model): t for c in system.service_class_data.service_classes for t in c.model_targets
    }
    table = _table("server", "accelerator")
    for heading in ("replicas", "batch", "$/h", "ITL ms", "TTFT ms", "req/min"):
        table.add_column(heading, justify="right", no_wrap=True)
    for server in system.server_data.servers:
        given = response.allocations.get(server.name)
        if given is None:
            table.add_row(server.name, "no answer")
            continue
        target = targets.get((server.class_name, server.model), ModelTarget(model=server.model))
        ttft_ms = target.slo_ttft_ms or target.slo_ttw_ms
        if given.wait_average_ms is not None:  # law 1, where the TTFT is the wait
            ttft_ms = target.slo_ttw_ms or target.slo_ttft_ms
        demand_rpm = server.current_alloc.load.arrival_rate_rpm
        table.add_row(
            server.name,
            f"{len(given.parts)} types" if given.parts else given.accelerator or "none",
            *_cells(given, target.slo_itl_ms, ttft_ms),
            _served(given.load.arrival_rate_rpm, demand_rpm),
        )
        for part in given.parts or ():
            cells = _cells(part, target.slo_itl_ms, ttft_ms)
            served = _number(part.load.arrival_rate_rpm)
            table.add_row("", f"+ {part.accelerator}", *cells, served, style="dim")
    return table


def _cells(given: Allocation | AllocPart, itl_target_ms: float, ttft_target_ms: float) -> list[str | Text]:
    """Cells from the replicas to the TTFT."""
    return [
        str(given.num_replicas),
        str(given.max_batch),
        _dollars(given.cost_cents_per_h),
        _against(given.itl_average_ms, itl_target_ms),
        _against(given.ttft_average_ms, ttft_target_ms),
    ]


def _against(value: float | None, target: float) -> Text:
    """Write a latency, with its target where there is one."""
    if not target:
        return Text(_number(value))
    missed = value is not None and value > target
    return Text(f"{_number(value)} / {_number(target)}", style="red" if missed else "")


def _served(served_rpm: float, demand_rpm: float) -> Text:
    share = served_rpm / demand_rpm if demand_rpm else 1.0
    if share >= _WHOLE:
        return Text(_number(served_rpm))
    return Text(f"{_number(served_rpm)} of {_number(demand_rpm)}", style="yellow")


def _inventory(report: Report) -> Group:
    table = _table("GPU type")
    for heading in ("used", "there are", "free"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("one more is worth", overflow="fold")
    for use in report.inventory:
        there, free = "unlimited", "-"
        if use.available is not None:
            there, free = str(use.available), str(use.available - use.used)
        table.add_row(use.type, str(use.used), there, free, _worth(use))
    bases = dict.fromkeys(use.basis for use in report.inventory if _worth(use) != "-")
    return Group(table, *(Text(f"(worth: {basis})", style="dim") for basis in bases))


def _worth(use: InventoryUse) -> str:
    value = use.value_of_one_more_gpu
    if value is None or use.available is None:
        return "-"
    served, saved = value.unserved_share, value.cost_per_hour
    if served is not None and served > 0:
        return f"{_percent(served)} of a server's demand{_holds(value.unserved_range)}"
    if saved is not None and saved > 0:
        return f"{_dollars(saved)} $/h{_holds(value.cost_range)}"
    return "nothing" if saved == 0 else "-"


def _holds(cards: CardRange | None) -> str:
    """Say for how many GPUs of the type a value holds."""
    if cards is None:
        return ""
    only = cards.least == cards.most
    return f", with {cards.least} only" if only else f", holds from {cards.least} to {cards.most}"


def _totals(report: Report) -> Text:
    gap = "no bound is proven"
    if report.gap is not None:
        gap = f"proven to be at least {_dollars(report.bound)} $/h (gap {100 * report.gap:.3g} %)"
    penalty = ""
    if report.switching_penalty_cents_per_h:
        penalty = f", switching penalty {_dollars(report.switching_penalty_cents_per_h)} $/h"
    solver = f"{report.solver} {report.version}".strip()
    seconds = report.seconds.get("total", 0.0)
    return Text.assemble(
        "Cost ",
        (f"{_dollars(report.cost_cents_per_h)} $/h", "bold"),
        f"{penalty}; {gap}.\n",
        f"{report.termination.capitalize()}, backend {report.backend} ({solver}), {seconds:.3g} s.",
    )


def _unserved(report: Report) -> Table:
    table = _table("server", "class")
    for heading in ("priority", "not served"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("because", overflow="fold")
    for u in report.unserved:
        table.add_row(u.server, u.service_class, str(u.priority), _percent(u.unserved_share), u.detail)
    return table


def _explanations(report: Report) -> Table:
    table = _table("server", "accelerator")
    for heading in ("batch", "replicas", "$/h"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("why not", overflow="fold")
    for server, reasons in report.explanations.items():
        for i, e in enumerate(reasons):
            batch, replicas = ("-" if n is None else str(n) for n in (e.max_batch, e.num_replicas))
            name = "" if i else server
            table.add_row(name, e.accelerator, batch, replicas, _dollars(e.cost_cents_per_h), e.detail)
    return table


def _verification(verification: Verification) -> Group:
    table = _table("server", "accelerator")
    for heading in ("batch", "req/min each", "ITL ms", "model", "TTFT ms", "model", "p95 ms", "model"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("targets", overflow="fold")
    for option in verification.options:
        model = option.model
        simulated = option.simulated or Latencies(itl_average_ms=None, ttft_average_ms=None, ttft_p95_ms=None)
        table.add_row(
            option.server,
            option.accelerator,
            str(option.max_batch),
            _number(option.arrival_rate_per_replica_rpm),
            _number(simulated.itl_average_ms),
            _number(model.itl_average_ms),
            _number(simulated.ttft_average_ms),
            _number(model.ttft_average_ms),
            _number(simulated.ttft_p95_ms),
            _number(model.ttft_p95_ms),
            Text(option.verdict, style="" if option.verdict == "met" else "red"),
        )
    lines = [
        f"{cut.server} on {cut.accelerator}, batch {cut.max_batch}: cut from {_number(cut.capacity_rpm)} to "
        f"{_number(cut.simulated_rpm)} req/min a replica"
        for cut in verification.cuts
    ]
    rounds = "once" if verification.rounds == 1 else f"{verification.rounds} times"
    return Group(table, *map(Text, [*lines, f"Solved {rounds}."]))


def _table(*names: str) -> Table:
    """Return an empty table whose first columns hold names."""
    table = Table(box=SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0), header_style="bold")
    for name in names:
        table.add_column(name, overflow="fold")
    return table


def _heading(text: str) -> Text:
    return Text(f"\n{text}", style="bold")


def _dollars(cents: float | None) -> str:
    return "-" if cents is None or isnan(cents) else f"{in_dollars(cents):,.2f}"


def _percent(share: float | None) -> str:
    return "-" if share is None or isnan(share) else f"{100 * share:.1f} %"


def _number(value: float | None) -> str:
    """Write a figure with about four digits, and no exponent in the range that occurs."""
    if value is None or isnan(value):
        return "-"
    if value >= 1000 or value == int(value):
        return f"{value:,.0f}"
    return f"{value:.4g}"

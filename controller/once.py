"""One pass, and a table for people of what it decided."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

from controller.errors import ClusterError
from controller.loop import LOGGER, Edges, Now, Outcome, State, reconcile
from controller.record import record_line

if TYPE_CHECKING:
    from collections.abc import Callable


def once(edges: Edges, write_record: Callable[[str], None]) -> int:
    """Do one pass and print what it decided; 0 when it came to decisions, else 1."""
    now = Now(time.monotonic(), datetime.now(UTC))
    try:
        outcome = reconcile(edges, State(), now)
    except ClusterError as error:
        LOGGER.error("%s", error)
        return 1
    write_record(record_line(outcome, now))
    console = Console()
    console.print(decision_table(outcome))
    for problem in outcome.problems:
        console.print(f"- {problem}", highlight=False, markup=False)
    return 0 if outcome.figures.ok else 1


def decision_table(outcome: Outcome) -> Table:
    """Return what a pass decided as a table."""
    table = Table(title="What each variant is to have", title_justify="left")
    for name in ("Variant", "Model", "Accelerator", "Now", "Wanted", "Desired", "Why"):
        table.add_column(
            name, overflow="fold", justify="right" if name in ("Now", "Wanted", "Desired") else "left"
        )
    for decision in outcome.plan.decisions:
        table.add_row(
            str(decision.variant.key),
            decision.variant.model_id,
            decision.accelerator,
            _figure(decision.current),
            _figure(decision.recommended),
            _figure(decision.desired) if decision.desired is not None else "held",
            decision.why,
        )
    return table


def _figure(value: int | None) -> str:
    return "" if value is None else str(value)

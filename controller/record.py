"""The record of decisions: one JSON line for every pass, with what was asked, answered, applied and held."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from controller.loop import Now, Outcome


def record_line(outcome: Outcome, now: Now) -> str:
    """Return a pass as one line of JSON, without the line's end.

    ``system`` is a body for ``POST /optimize``: solving it again must give the same answer.
    """
    decisions: list[dict[str, Any]] = [
        {
            "namespace": decision.variant.key.namespace,
            "name": decision.variant.key.name,
            "accelerator": decision.accelerator,
            "current": decision.current,
            "recommended": decision.recommended,
            "desired": decision.desired,
            "held": decision.held_reason or None,
            "why": decision.why,
        }
        for decision in outcome.plan.decisions
    ]
    document = {
        "at": now.rfc3339,
        "seconds": {stage: round(value, 4) for stage, value in outcome.figures.seconds.items()},
        "system": outcome.system.model_dump(mode="json", exclude_none=True) if outcome.system else None,
        "response": outcome.response.model_dump(mode="json") if outcome.response else None,
        "decisions": decisions,
        "problems": list(outcome.problems),
    }
    return json.dumps(document, separators=(",", ":"), allow_nan=False)

"""The record of decisions: one JSON line for every pass, with what was asked, answered, applied and held."""

from __future__ import annotations

import json
import logging
from contextlib import contextmanager
from logging.handlers import RotatingFileHandler
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from controller.loop import Now, Outcome

LOGGER = logging.getLogger("fleetopt.controller")

_MOST_BYTES, _OLD_FILES = 50 * 1024 * 1024, 5


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


@contextmanager
def recording(path: str | None) -> Iterator[Callable[[str], None]]:
    """Give what takes the lines of a record.

    Parameters
    ----------
    path : str or None
        A file that is moved to ``path.1``, ``path.2``, ... when it is full; ``-``: standard output; None:
        nowhere.

    Raises
    ------
    OSError
        When the file cannot be opened.
    """
    if path is None:
        yield lambda line: None
    elif path == "-":
        yield lambda line: print(line, flush=True)
    else:
        file = _RecordFile(path, maxBytes=_MOST_BYTES, backupCount=_OLD_FILES, encoding="utf-8")
        try:
            yield lambda line: file.emit(logging.makeLogRecord({"msg": line}))
        finally:
            file.close()


class _RecordFile(RotatingFileHandler):
    """A file on a disk that may be full: then a line is missing, and the controller goes on."""

    def close(self) -> None:
        try:
            super().close()
        except OSError:
            LOGGER.warning("the end of the record %s is missing", self.baseFilename, exc_info=True)

    def handleError(self, record: logging.LogRecord) -> None:
        LOGGER.warning("a line is missing in the record %s", self.baseFilename, exc_info=True)

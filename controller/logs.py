"""How the controller logs: to standard error, as text for people or as JSON lines for collectors."""

from __future__ import annotations

import json
import logging
import sys
from datetime import UTC, datetime
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import argparse

LEVELS = ("debug", "info", "warning", "error")
FORMATS = ("text", "json")

# From this verbosity on the old manager logs what it calls debug.
_DEBUG_VERBOSITY = 4
_OTHER_NAMES = {"warn": "warning", "panic": "error", "fatal": "error"}


def configure_logging(options: argparse.Namespace) -> None:
    """Log as the options of `controller.flags.read_options` say."""
    level, style = chosen_style(options)
    handler = logging.StreamHandler(sys.stderr)
    text = logging.Formatter("%(asctime)s %(levelname)s %(message)s")
    handler.setFormatter(JsonLines() if style == "json" else text)
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    if level != "debug":
        # A follower of the leader would say every two seconds that it is one.
        logging.getLogger("leaderelection").setLevel(logging.WARNING)


def chosen_style(options: argparse.Namespace) -> tuple[str, str]:
    """Return level and format: the own options, else those of zap, else ``LOG_LEVEL``, else info and text."""
    by_development = {None: (None, None), True: ("debug", "text"), False: ("info", "json")}
    devel_level, devel_style = by_development[options.zap_devel]
    verbose = "debug" if options.v >= _DEBUG_VERBOSITY else None
    named = (
        options.log_level,
        options.zap_log_level,
        verbose,
        devel_level,
        options.settings.get("LOG_LEVEL"),
    )
    encoder = {None: None, "console": "text", "json": "json"}[options.zap_encoder]
    levels = [_level(name) for name in named if name]
    return next(filter(None, levels), "info"), options.log_format or encoder or devel_style or "text"


def _level(name: str) -> str | None:
    """One of `LEVELS`; None: the name means nothing."""
    lower = name.strip().lower()
    if lower.isdecimal():
        return "debug"
    lower = _OTHER_NAMES.get(lower, lower)
    return lower if lower in LEVELS else None


class JsonLines(logging.Formatter):
    """One JSON object a line, with the keys that zap writes."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line of a record."""
        line = {
            "level": record.levelname.lower(),
            "ts": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "logger": record.name,
            "msg": record.getMessage(),
        }
        if record.exc_info:
            line["stacktrace"] = self.formatException(record.exc_info)
        return json.dumps(line)

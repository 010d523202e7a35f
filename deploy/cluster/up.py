"""A cluster on this machine, without Docker and without GPUs, that lives through a day in five minutes.

Real: API server, HPAs, scheduler, Prometheus and its adapter, the objects of the chart, fleetopt's controller
under its own account, and its service. Simulated: nodes, pods, and what their model servers count.
"""

from __future__ import annotations

import argparse
import shutil
import signal
import sys
import time
from contextlib import nullcontext
from typing import TYPE_CHECKING

from cluster import Cluster
from demo_cluster import DemoCluster, started
from leftovers import children, mark, run_folder, running
from processes import ComponentError, find_binary, missing
from rich.console import Console
from rich.live import Live
from rich.text import Text
from story import Story
from table import screen, summary

if TYPE_CHECKING:
    from pathlib import Path

_EVERY_S, _BLOCK_EVERY_S = 1.0, 10.0
_SILENCE_S = 120.0


def main(argv: list[str] | None = None) -> int:
    """Start the cluster, tell the story, and run on until the end is asked for.

    Returns
    -------
    int
        0 when the story came true, 1 when it did not or something ended by itself, 2 when it cannot start.
    """
    parser = argparse.ArgumentParser(prog="up.py", description=__doc__)
    parser.add_argument("--story-only", action="store_true", help="end with the story")
    options = parser.parse_args(argv)
    folder = run_folder()
    lacking = [*Cluster.binaries_missing(), *missing(["helm"])]
    if lacking:
        print("\n  ".join(("These programs are missing:", *lacking)), file=sys.stderr)
        return 2
    if running(folder) is not None or children(folder):
        print("It runs already, or left something: make cluster-down ends it.", file=sys.stderr)
        return 2
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True, mode=0o700)
    mark(folder)
    # As Ctrl-C: everything ends in order.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    console = Console() if sys.stdout.isatty() else Console(width=120)
    story = Story()
    result = _run(folder, story, console, options.story_only)
    (folder / "pid").unlink(missing_ok=True)
    if story.told:
        console.print(summary(story))
    return result


def _run(folder: Path, story: Story, console: Console, story_only: bool) -> int:
    try:
        with started(folder, console.print) as its:
            command = f"{find_binary('kubectl')} --kubeconfig {its.kubeconfig}"
            # As it is, to be copied.
            console.print(f"In another terminal: {command} get va,hpa,deploy -A", soft_wrap=True)
            _tell(its, story, console, story_only)
    except KeyboardInterrupt:
        console.print("Ended.")
    except ComponentError as error:
        console.print(Text(f"{error}\nLogs: {folder}", style="red"))
        return 1
    return 0 if story.came_true else 1


def _tell(its: DemoCluster, story: Story, console: Console, story_only: bool) -> None:
    """Look, show and go on with the story, until it is over or forever."""
    assert story.phase
    its.set_rates(story.phase.rates_rps)
    start_s = seen_at_s = time.monotonic()
    block_at_s = 0.0
    live = Live(console=console, auto_refresh=False) if console.is_terminal else None
    with live or nullcontext():
        while story.phase or not story_only:
            its.check()
            seen, now_s = its.look(), time.monotonic()
            if seen is None and now_s - seen_at_s > _SILENCE_S:
                raise ComponentError("the API server or Prometheus does not answer")
            if seen is not None:
                seen_at_s = now_s
                is_new = story.look(seen, now_s - start_s)
                if is_new and story.phase:
                    its.set_rates(story.phase.rates_rps)
                shown = screen(story, seen, its.demo, now_s - start_s)
                if live:
                    live.update(shown, refresh=True)
                elif is_new or now_s >= block_at_s:
                    block_at_s = now_s + _BLOCK_EVERY_S
                    console.print(shown)
            time.sleep(_EVERY_S)


if __name__ == "__main__":
    sys.exit(main())

"""``fleetopt-controller``: the loop in a cluster, or one pass from a laptop."""

from __future__ import annotations

import argparse
import logging
import os
import signal
import socket
import sys
import threading
import time
from contextlib import ExitStack
from datetime import UTC, datetime
from logging.handlers import RotatingFileHandler
from pathlib import Path
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry
from rich.console import Console
from rich.table import Table

from controller import kube
from controller.client import HttpOptimizer
from controller.errors import ClusterError
from controller.loop import LOGGER, Edges, Now, Outcome, State, reconcile, run
from controller.metrics import VariantMetrics
from controller.prometheus import connect
from controller.record import record_line
from controller.serve import Signals, address, serving

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from controller.crd import Variant

LEASE = "fleetopt-controller"
_NAMESPACE_FILE = Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace")

_RECORD_BYTES, _RECORD_FILES = 50 * 1024 * 1024, 5


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the controller's options to a parser."""
    flag = {"nargs": "?", "const": True, "default": False, "type": _flag, "metavar": "true|false"}
    parser.add_argument(
        "--kubeconfig", help="kubeconfig file (default: the pod's account, else the usual file)"
    )
    parser.add_argument(
        "--system-namespace", default="", help="namespace of the ConfigMaps (default: the pod's own)"
    )
    parser.add_argument(
        "--watch-namespace",
        default=os.environ.get("WATCH_NAMESPACE", ""),
        help="namespace of the variants (default: all)",
    )
    parser.add_argument("--once", action="store_true", help="do one pass and print what it decided")
    parser.add_argument("--dry-run", action="store_true", help="write nothing to the cluster")
    parser.add_argument("--actuate", choices=("metrics", "scale"), help="who scales: HPA or KEDA, or this")
    parser.add_argument("--record", metavar="FILE", help="one JSON line for every pass; - is standard output")
    parser.add_argument("--leader-elect", **flag, help="act only while holding the Lease")  # type: ignore[arg-type]
    parser.add_argument(
        "--metrics-bind-address", default=":8080", type=_address, help="of /metrics and /wake; 0: none"
    )
    parser.add_argument(
        "--health-probe-bind-address", default=":8081", type=_address, help="of the probes; 0: none"
    )
    parser.add_argument("--log-level", default="info", choices=("debug", "info", "warning", "error"))


def main(argv: Sequence[str] | None = None) -> int:
    """Run the controller.

    Parameters
    ----------
    argv : sequence of str, optional
        Options; those of the process by default.

    Returns
    -------
    int
        0 after a signal or one pass that came to decisions, 1 after a pass that failed or a lost lease, 2 for
        wrong options or no way to a cluster.
    """
    parser = argparse.ArgumentParser(prog="fleetopt-controller", description=__doc__)
    add_arguments(parser)
    return run_command(parser.parse_args(argv))


def run_command(options: argparse.Namespace) -> int:
    """Run the controller with the parsed options of `add_arguments`; returns as `main`."""
    logging.basicConfig(
        level=options.log_level.upper(), stream=sys.stderr, format="%(asctime)s %(levelname)s %(message)s"
    )
    environ = dict(os.environ)
    if options.actuate:
        environ["FLEETOPT_ACTUATE"] = options.actuate
    try:
        api = kube.api_client(options.kubeconfig)
    except ClusterError as error:
        LOGGER.error("%s", error)
        return 2
    kubernetes = kube.Kubernetes(api, _system_namespace(options), options.watch_namespace)
    metrics = VariantMetrics()
    edges = Edges(
        reader=kubernetes,
        writer=_NoWriter() if options.dry_run else kubernetes,
        publisher=metrics,
        connect=connect,
        optimizer=lambda settings: HttpOptimizer(settings.optimizer_url, settings.optimizer_timeout_s),
        environ=environ,
    )
    with ExitStack() as stack:
        write_record = _recorder(options.record, stack)
        if options.once:
            return _once(edges, write_record)
        return _serve(options, edges, kubernetes, metrics, write_record, stack)


def _once(edges: Edges, write_record: Callable[[str], None]) -> int:
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
    """Return what a pass decided as a table for people."""
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


def _serve(
    options: argparse.Namespace,
    edges: Edges,
    kubernetes: kube.Kubernetes,
    metrics: VariantMetrics,
    write_record: Callable[[str], None],
    stack: ExitStack,
) -> int:
    signals = Signals()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: signals.end())
    registry = CollectorRegistry()
    registry.register(metrics)
    for at in {options.metrics_bind_address, options.health_probe_bind_address} - {None}:
        port = stack.enter_context(serving(at, registry, signals))
        LOGGER.info("listening on port %d", port)

    def step(state: State, now: Now) -> Outcome:
        woken = signals.take_woken()
        try:
            outcome = reconcile(edges, state, now, woken)
        except ClusterError:
            signals.keep_woken(woken)
            raise
        if not outcome.figures.ok:
            signals.keep_woken(woken)
        metrics.passed(outcome.figures)
        write_record(record_line(outcome, now))
        return outcome

    def work() -> None:
        kube.watch_changes(kubernetes, signals.change, signals.stop)
        run(step, signals.wait)

    if not _wait_for_cluster(kubernetes, signals):
        return 0
    if not options.leader_elect:
        work()
        return 0
    identity = f"{socket.gethostname()}_{os.getpid()}"
    lost = _lead(kubernetes, identity, work, signals)
    metrics.clear()
    return 1 if lost else 0


def _wait_for_cluster(kubernetes: kube.Kubernetes, signals: Signals) -> bool:
    """Wait until the variants can be listed, and become ready; False when the end comes first."""
    said = ""
    while not signals.stop.is_set():
        try:
            kubernetes.variants()
        except ClusterError as error:
            if str(error) != said:
                said = str(error)
                LOGGER.warning("not ready: %s", said)
            signals.stop.wait(5.0)
        else:
            signals.ready.set()
            return True
    return False


def _lead(kubernetes: kube.Kubernetes, identity: str, work: Callable[[], None], signals: Signals) -> bool:
    """Work while the lease is held; True when it was lost, False when the end came first."""
    lost = threading.Event()

    def elect() -> None:
        kube.lead(kubernetes.api, LEASE, kubernetes.system_namespace, identity, work)
        lost.set()
        signals.end()

    threading.Thread(target=elect, daemon=True).start()
    signals.stop.wait()
    return lost.is_set()


class _NoWriter:
    """Writes nothing."""

    def patch_status(self, variant: Variant, patch: dict[str, object]) -> None:
        """Leave the status."""

    def scale(self, variant: Variant, replicas: int) -> None:
        """Leave the target."""

    def record(self, variant: Variant, reason: str, message: str) -> None:
        """Record nothing."""


def _recorder(path: str | None, stack: ExitStack) -> Callable[[str], None]:
    if path is None:
        return lambda line: None
    if path == "-":
        return lambda line: print(line, flush=True)
    handler = RotatingFileHandler(path, maxBytes=_RECORD_BYTES, backupCount=_RECORD_FILES, encoding="utf-8")
    stack.callback(handler.close)
    return lambda line: handler.emit(logging.makeLogRecord({"msg": line}))


def _system_namespace(options: argparse.Namespace) -> str:
    if options.system_namespace:
        return str(options.system_namespace)
    if os.environ.get("POD_NAMESPACE"):
        return os.environ["POD_NAMESPACE"]
    return _NAMESPACE_FILE.read_text().strip() if _NAMESPACE_FILE.exists() else "fleetopt-system"


def _flag(text: str) -> bool:
    if text.lower() not in ("true", "false"):
        raise argparse.ArgumentTypeError(f"{text!r} is neither true nor false")
    return text.lower() == "true"


def _address(text: str) -> tuple[str, int] | None:
    try:
        return address(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


if __name__ == "__main__":
    sys.exit(main())

"""The process in a cluster: servers, set-up, the lead, one pass after another, the end.

::

    serve -> wait for the cluster (ready) -> wait for the Lease -> passes, until a signal or the Lease is lost
"""

from __future__ import annotations

import os
import signal
import socket
import threading
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry

from controller import kube
from controller.certificate import FileCertificate, self_signed
from controller.errors import ClusterError
from controller.health import PASS_LIMIT_S, Health
from controller.loop import LOGGER, Edges, Now, Outcome, State, reconcile, run
from controller.record import record_line
from controller.secure import ClusterGate, ClusterReviewer
from controller.serve import Signals, metric_routes, probe_routes, serving

if TYPE_CHECKING:
    import argparse
    import ssl
    from collections.abc import Callable

    from controller.metrics import VariantMetrics

LEASE = "fleetopt-controller"

# Until a pass could read the settings.
_FIRST_INTERVAL_S = 60.0
_RETRY_S = 5.0


def serve(
    options: argparse.Namespace,
    edges: Edges,
    kubernetes: kube.Kubernetes,
    metrics: VariantMetrics,
    write_record: Callable[[str], None],
) -> int:
    """Do passes until SIGTERM or SIGINT.

    Parameters
    ----------
    options : argparse.Namespace
        Of `controller.flags.read_options`.
    edges : Edges
    kubernetes : Kubernetes
    metrics : VariantMetrics
    write_record : callable
        Takes the line of every pass.

    Returns
    -------
    int
        0 after a signal, 1 when the loop failed or the Lease was lost.

    Raises
    ------
    OSError
        When an address is taken or a certificate cannot be read.
    """
    signals, health = Signals(), Health()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: signals.end())
    passes = Passes(edges, metrics, write_record, signals, health)

    def work() -> None:
        kube.watch_changes(kubernetes, signals.change, signals.stop)
        run(passes.step, signals.wait)

    with ExitStack() as stack:
        # However it ends, nothing is watched any more.
        stack.callback(signals.end)
        _open_servers(options, kubernetes, metrics, signals, health, stack)
        if not _wait_for_cluster(kubernetes, signals, health):
            return 0
        if options.leader_elect:
            failed = _lead(options, kubernetes, work, signals, health)
            metrics.clear()
        else:
            failed = _work(work, health)
    return 1 if failed else 0


@dataclass
class Passes:
    """One pass after another, and all that is told about each.

    Attributes
    ----------
    edges : Edges
    metrics : VariantMetrics
    write_record : callable
    signals : Signals
    health : Health
    interval_s : float
        Of the settings of the last pass.
    """

    edges: Edges
    metrics: VariantMetrics
    write_record: Callable[[str], None]
    signals: Signals
    health: Health
    interval_s: float = _FIRST_INTERVAL_S

    def step(self, state: State, now: Now) -> Outcome:
        """Do a pass; raises ClusterError when the cluster cannot be read."""
        self.health.promise(self.interval_s + PASS_LIMIT_S)
        woken = self.signals.take_woken()
        try:
            outcome = reconcile(self.edges, state, now, woken)
        except ClusterError:
            self.signals.keep_woken(woken)
            raise
        if not outcome.figures.ok:
            self.signals.keep_woken(woken)
        self.interval_s = outcome.settings.interval_s
        self.health.promise(self.interval_s + PASS_LIMIT_S)
        self.metrics.passed(outcome.figures)
        self.write_record(record_line(outcome, now))
        return outcome


def _open_servers(
    options: argparse.Namespace,
    kubernetes: kube.Kubernetes,
    metrics: VariantMetrics,
    signals: Signals,
    health: Health,
    stack: ExitStack,
) -> None:
    registry = CollectorRegistry()
    registry.register(metrics)
    of_metrics = metric_routes(registry, signals)
    metrics_at, probes_at = options.metrics_bind_address, options.health_probe_bind_address
    if metrics_at is not None and options.metrics_secure:
        gate = ClusterGate(ClusterReviewer(kubernetes.api))
        secure = serving(metrics_at, of_metrics, context=_contexts(options), gate=gate)
        LOGGER.info("secure metrics on port %d", stack.enter_context(secure))
    elif metrics_at is not None:
        LOGGER.info("metrics on port %d", stack.enter_context(serving(metrics_at, of_metrics)))
    if probes_at is not None:
        LOGGER.info("probes on port %d", stack.enter_context(serving(probes_at, probe_routes(health))))


def _contexts(options: argparse.Namespace) -> Callable[[], ssl.SSLContext]:
    """What gives the TLS context of a connection."""
    if options.metrics_cert_path:
        folder = Path(options.metrics_cert_path)
        return FileCertificate(folder / options.metrics_cert_name, folder / options.metrics_cert_key).context
    own = self_signed()
    return lambda: own


def _wait_for_cluster(kubernetes: kube.Kubernetes, signals: Signals, health: Health) -> bool:
    """Wait until the variants can be listed, and become ready; False when the end comes first."""
    said = ""
    while not signals.stop.is_set():
        try:
            kubernetes.variants()
        except ClusterError as error:
            if str(error) != said:
                said = str(error)
                LOGGER.warning("not ready: %s", said)
            signals.stop.wait(_RETRY_S)
        else:
            health.become_ready()
            return True
    return False


def _work(work: Callable[[], None], health: Health) -> bool:
    """Work, and return whether that failed."""
    try:
        work()
    except Exception as error:
        LOGGER.exception("the loop failed")
        health.fail(f"the loop failed: {error}")
        return True
    return False


def _lead(
    options: argparse.Namespace,
    kubernetes: kube.Kubernetes,
    work: Callable[[], None],
    signals: Signals,
    health: Health,
) -> bool:
    """Work while the Lease is held; True when that failed or it was lost, False when the end came first."""
    over = threading.Event()

    def work_once() -> None:
        LOGGER.info("leading")
        if _work(work, health):
            over.set()
            signals.end()

    def elect() -> None:
        identity = f"{socket.gethostname()}_{os.getpid()}"
        try:
            kube.lead(
                kubernetes.api,
                LEASE,
                kubernetes.system_namespace,
                identity,
                work_once,
                lease_s=options.leader_election_lease_duration,
                renew_s=options.leader_election_renew_deadline,
                retry_s=options.leader_election_retry_period,
            )
            if not over.is_set():
                LOGGER.error("the Lease is lost")
        except Exception:
            LOGGER.exception("the election failed")
        finally:
            over.set()
            signals.end()

    threading.Thread(target=elect, daemon=True).start()
    signals.stop.wait()
    return over.is_set()

"""``fleetopt-controller``: the loop in a cluster, or one pass from a laptop."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from controller import kube
from controller.client import HttpOptimizer
from controller.daemon import serve
from controller.errors import ClusterError
from controller.flags import read_options
from controller.logs import configure_logging
from controller.loop import LOGGER, Edges
from controller.metrics import VariantMetrics
from controller.once import once
from controller.prometheus import connect
from controller.record import recording

if TYPE_CHECKING:
    import argparse
    from collections.abc import Mapping, Sequence

    from controller.crd import Variant

_NAMESPACE_FILE = Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace")


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
    options = read_options(sys.argv[1:] if argv is None else argv, os.environ, "fleetopt-controller")
    configure_logging(options)
    if options.unused:
        LOGGER.info("without effect here: %s", ", ".join(options.unused))
    try:
        return _run(options)
    except (ClusterError, OSError) as error:
        LOGGER.error("%s", error)
        return 2


def _run(options: argparse.Namespace) -> int:
    settings = dict(options.settings)
    if options.actuate:
        settings["FLEETOPT_ACTUATE"] = options.actuate
    if options.owner_reference is not None:
        settings["FLEETOPT_OWNER_REFERENCE"] = str(options.owner_reference).lower()
    api = kube.api_client(options.kubeconfig)
    kubernetes = kube.Kubernetes(api, _system_namespace(options), options.watch_namespace)
    metrics = VariantMetrics()
    edges = Edges(
        reader=kubernetes,
        writer=_NoWriter() if options.dry_run else kubernetes,
        publisher=metrics,
        connect=connect,
        optimizer=lambda settings: HttpOptimizer(settings.optimizer_url, settings.optimizer_timeout_s),
        environ=settings,
    )
    with recording(options.record) as write_record:
        if options.once:
            return once(edges, write_record)
        return serve(options, edges, kubernetes, metrics, write_record)


class _NoWriter:
    """Writes nothing."""

    def patch_status(self, variant: Variant, patch: dict[str, object]) -> None:
        """Leave the status."""

    def scale(self, variant: Variant, replicas: int) -> None:
        """Leave the target."""

    def own(self, variant: Variant, reference: Mapping[str, object]) -> None:
        """Leave the owner."""

    def record(self, variant: Variant, reason: str, message: str) -> None:
        """Record nothing."""


def _system_namespace(options: argparse.Namespace) -> str:
    given = options.system_namespace or options.settings.get("POD_NAMESPACE")
    if given:
        return str(given)
    return _NAMESPACE_FILE.read_text().strip() if _NAMESPACE_FILE.exists() else "fleetopt-system"


if __name__ == "__main__":
    sys.exit(main())

"""What can go wrong in a pass, as types. A pass that fails changes nothing.

::

    ControllerError
    ├── ClusterError      the Kubernetes API did not answer, or refused
    ├── PrometheusError   Prometheus did not answer, or its answer is none
    └── OptimizerError    the service did not answer, or its answer cannot be acted on
"""

from __future__ import annotations


class ControllerError(Exception):
    """Base of what a pass survives."""


class ClusterError(ControllerError):
    """The Kubernetes API did not answer, or refused; the message says what was asked."""


class PrometheusError(ControllerError):
    """Prometheus did not answer in time, refused, or answered something else."""


class OptimizerError(ControllerError):
    """The optimizer did not answer in time, refused, or its answer is not one for this system."""

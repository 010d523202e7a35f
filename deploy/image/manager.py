#!/opt/fleetopt/bin/python
"""``/manager`` of the image: the entry point that Deployments of the Workload-Variant-Autoscaler name.

Such a Deployment has one container and no service beside it. So both run here: the service on a free port of
loopback, and the controller with the arguments that were given. When either ends, the other is ended too, and
Kubernetes starts the container again. Where the environment names a service (``FLEETOPT_OPTIMIZER_URL``) the
controller asks that one, and runs alone.
"""

import os
import signal
import socket
import subprocess
import sys
from types import FrameType


def main(arguments: list[str]) -> int:
    """Run both, and return the exit code of the one that ended first; 1 where the service went by itself."""
    controller = ["fleetopt-controller", *arguments]
    if os.environ.get("FLEETOPT_OPTIMIZER_URL"):
        os.execvp(controller[0], controller)
    # The grace period of such a Deployment is 10 s; requests that still run then are of no use to anybody.
    os.environ.setdefault("FLEETOPT_STOP", "5")
    port = free_port()
    service = ["fleetopt", "serve", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    running: list[subprocess.Popen[bytes]] = []
    stopping = False

    def stop(number: int, frame: FrameType | None) -> None:
        nonlocal stopping
        stopping = True
        for process in running:
            process.terminate()

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, stop)
    running.append(subprocess.Popen(service))
    environ = os.environ | {"FLEETOPT_OPTIMIZER_URL": f"http://127.0.0.1:{port}"}
    running.append(subprocess.Popen(controller, env=environ))
    ended, status = os.wait()
    code = os.waitstatus_to_exitcode(status)
    for process in running:
        if process.pid != ended:
            process.terminate()
            process.wait()
    if stopping and code == -signal.SIGTERM:
        # It was told to end before it had begun to listen for that.
        return 0
    return code if stopping or ended == running[1].pid else 1


def free_port() -> int:
    """Return a port of loopback that nothing listens on."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

# syntax=docker/dockerfile:1
# The service and the controller, in one image:
#   docker build -t fleetopt .
#   docker run --rm -p 8080:8080 --read-only --tmpfs /tmp fleetopt              the service
#   docker run --rm --read-only --tmpfs /tmp fleetopt controller --help         the controller
# /manager runs both, for Deployments that were made for the Workload-Variant-Autoscaler (docs/migration.md).
# Other solvers by build argument: --build-arg EXTRAS=controller,ortools,pyomo; a base of your own, such as one pinned
# by digest: --build-arg PYTHON_IMAGE=python@sha256:...
ARG PYTHON_IMAGE=python:3.12.12-slim-bookworm

FROM ${PYTHON_IMAGE} AS build
ARG EXTRAS=controller
WORKDIR /src
# Five modules are compiled; the image that runs has no compiler.
RUN command -v cc >/dev/null \
    || (apt-get update -qq && apt-get install -y -qq --no-install-recommends gcc libc6-dev)
COPY pyproject.toml README.md LICENSE ./
COPY models models
COPY solver solver
COPY controller controller
# The environment has no pip of its own: it is filled from outside.
RUN python -m venv --without-pip /opt/fleetopt \
    && pip --python /opt/fleetopt/bin/python install --no-cache-dir ".${EXTRAS:+[${EXTRAS}]}"

FROM ${PYTHON_IMAGE}
RUN useradd --system --uid 10001 --no-create-home --shell /usr/sbin/nologin fleetopt
COPY --from=build /opt/fleetopt /opt/fleetopt
COPY --chmod=0755 deploy/image/manager.py /manager
# Nothing is written outside /tmp: no bytecode either, so that the root may be read-only.
ENV PATH=/opt/fleetopt/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1
# A number: Kubernetes cannot tell that a name is not root (runAsNonRoot).
USER 10001
EXPOSE 8080
# For the service run by Docker alone; Kubernetes has probes of its own.
HEALTHCHECK --interval=10s --timeout=5s --start-period=20s --retries=3 \
    CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8080/healthz', timeout=4)"]
ENTRYPOINT ["fleetopt"]
# A flag wins over FLEETOPT_PORT, which Kubernetes sets in pods beside a Service called fleetopt.
CMD ["serve", "--host", "0.0.0.0", "--port", "8080"]

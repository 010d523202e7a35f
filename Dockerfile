# syntax=docker/dockerfile:1
# The solver service. Other solvers or the controller by build argument:
#   docker build --build-arg EXTRAS=ortools,pyomo -t fleetopt .
#   docker build --build-arg EXTRAS=controller -t fleetopt-controller .   (entrypoint fleetopt-controller)
ARG PYTHON_VERSION=3.12

FROM python:${PYTHON_VERSION}-slim AS build
ARG EXTRAS=""
WORKDIR /src
COPY pyproject.toml README.md LICENSE ./
COPY models models
COPY solver solver
COPY controller controller
# The environment has no pip of its own: it is filled from outside.
RUN python -m venv --without-pip /opt/fleetopt \
    && pip --python /opt/fleetopt/bin/python install --no-cache-dir ".${EXTRAS:+[${EXTRAS}]}"

FROM python:${PYTHON_VERSION}-slim
RUN useradd --system --uid 10001 --no-create-home --shell /usr/sbin/nologin fleetopt
COPY --from=build /opt/fleetopt /opt/fleetopt
ENV PATH=/opt/fleetopt/bin:$PATH \
    PYTHONUNBUFFERED=1
USER 10001
EXPOSE 8080
HEALTHCHECK --interval=10s --timeout=5s --start-period=20s --retries=3 \
    CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8080/healthz', timeout=4)"]
ENTRYPOINT ["fleetopt"]
# A flag wins over FLEETOPT_PORT, which Kubernetes sets in pods beside a Service called fleetopt.
CMD ["serve", "--host", "0.0.0.0", "--port", "8080"]

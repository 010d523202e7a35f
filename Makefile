# The README's commands. Everything runs in .venv, made on first use.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
DEMO_PORT ?= 18080

.PHONY: test e2e demo cluster cluster-down scenarios lint bench bench-parts bench-controller accuracy clean

$(READY): pyproject.toml models/chain.py solver/covering.py solver/entries.py solver/knapsacks.py solver/labels.py solver/smoothed.py
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	touch $(READY)

test: $(READY)
	$(BIN)/python -m pytest

# Only the tests on a whole cluster of real components, which must be there: five minutes, and ten to build it once.
e2e: $(READY)
	@if command -v go >/dev/null; then deploy/cluster/build.sh; fi
	E2E=required $(BIN)/python -m pytest tests/e2e

# A real system against a real service on loopback, which is stopped again.
demo: $(READY)
	@$(BIN)/fleetopt serve --port $(DEMO_PORT) --log-level warning & service=$$!; \
	trap 'kill -TERM $$service 2>/dev/null; wait $$service' EXIT INT TERM; \
	echo "POST http://127.0.0.1:$(DEMO_PORT)/optimize < scenarios/azure-chat-peak/system.json"; \
	$(BIN)/fleetopt request --wait 60 http://127.0.0.1:$(DEMO_PORT) scenarios/azure-chat-peak/system.json

# A real control plane with fake GPU nodes, and a day in five minutes on it (docs/cluster.md).
# CLUSTER_ARGS=--story-only ends it with the story.
cluster: $(READY)
	@if command -v go >/dev/null; then echo "Building what is not there yet (the first time: about ten minutes)"; deploy/cluster/build.sh; fi
	@$(BIN)/python deploy/cluster/up.py $(CLUSTER_ARGS)

# Ends it from another terminal, or what it left when it was killed.
cluster-down: $(READY)
	@$(BIN)/python deploy/cluster/down.py

# pytest with each backend, over every scenario.
scenarios: $(READY)
	for backend in highs ortools pyomo greedy; do $(BIN)/python -m pytest scenarios --backend $$backend || exit 1; done

# One table of fleets up to 10,000 servers, written to benchmarks/RESULTS.md row by row; about half an hour.
# BENCH="--resume" goes on where a run was stopped, BENCH="--servers 27 100" measures those rows only.
bench: $(READY)
	$(BIN)/python benchmarks/fleet.py --write --repeat 5 $(BENCH)

# What the table is made of: sizing law by law, reading JSON, requests over HTTP.
bench-parts: $(READY)
	$(BIN)/python benchmarks/sizing.py
	$(BIN)/python benchmarks/parsing.py
	$(BIN)/python benchmarks/latency.py
	$(BIN)/python benchmarks/verify.py

# A thousand variants on a real API server and Prometheus; about two minutes, and the binaries of deploy/cluster/build.sh.
bench-controller: $(READY)
	$(BIN)/python benchmarks/controller.py --write

# Errors of the models against the simulator; about five minutes.
accuracy: $(READY)
	$(BIN)/python benchmarks/accuracy.py --write docs/accuracy.md

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

clean:
	rm -rf $(VENV) build dist solver/*.c models/*.c solver/*.so models/*.so

# The README's commands. Everything runs in .venv, made on first use.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
DEMO_PORT ?= 18080

.PHONY: test demo scenarios lint bench bench-controller accuracy clean

$(READY): pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	touch $(READY)

test: $(READY)
	$(BIN)/python -m pytest

# A real system against a real service on loopback, which is stopped again.
demo: $(READY)
	@$(BIN)/fleetopt serve --port $(DEMO_PORT) --log-level warning & service=$$!; \
	trap 'kill -TERM $$service 2>/dev/null; wait $$service' EXIT INT TERM; \
	echo "POST http://127.0.0.1:$(DEMO_PORT)/optimize < scenarios/azure-chat-peak/system.json"; \
	$(BIN)/fleetopt request --wait 60 http://127.0.0.1:$(DEMO_PORT) scenarios/azure-chat-peak/system.json

# pytest with each backend, over every scenario.
scenarios: $(READY)
	for backend in highs ortools pyomo greedy; do $(BIN)/python -m pytest scenarios --backend $$backend || exit 1; done

bench: $(READY)
	$(BIN)/python benchmarks/sizing.py
	$(BIN)/python benchmarks/parsing.py
	$(BIN)/python benchmarks/latency.py
	$(BIN)/python benchmarks/fleet.py --servers 27 100 --repeat 3

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
	rm -rf $(VENV) build dist

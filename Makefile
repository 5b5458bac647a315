# Everything that is done by hand, by a hook or by CI is a target here. `make` lists them.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# What the tests of the browser's side need; without npm they are skipped with a reason.
BROWSER := tests/browser
NODE := $(BROWSER)/node_modules/.made
# What the benchmarks compare with; no part of the product, nor of what development needs.
PEERS := bench/.peers
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet
COMPILE := $(BIN)/uv pip compile --quiet --universal --generate-hashes --python-version 3.11 \
	--custom-compile-command "make lock" $(if $(UPGRADE),--upgrade)

# Passed on to pytest: make test ARGS="tests/server -x"
ARGS ?=
# Tests run in so many processes: much of what they do is to wait. A file stays in one of them.
JOBS ?= $(shell expr $$(getconf _NPROCESSORS_ONLN) + 1)
PARALLEL = $(if $(filter 1,$(JOBS)),,-n $(JOBS) --dist loadfile)

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help run test check lint format cover rules fuzz soak simulate types screenshots bench peers \
	lock build clean distclean

help: ## list the targets
	@echo "Targets (PYTHON=$(PYTHON) makes the environment in $(VENV)/):"
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  \1|\2/p' $(MAKEFILE_LIST) | \
		while IFS='|' read -r name text; do printf '  %-12s %s\n' "$$name" "$$text"; done

run: $(VENV)/.run ## start one node for development and print its address (PORT=8901 for another than 8000)
	@exec $(BIN)/galecast serve --dev --readings $(if $(PORT),--port $(PORT))

test: $(VENV)/.dev $(NODE) ## run the tests; what this machine lacks is skipped with a reason (ARGS="-k name")
	$(BIN)/python -m pytest $(PARALLEL) $(ARGS)

check: lint cover ## all that CI checks: style, types, tests, coverage

lint: $(VENV)/.dev ## style and types, without changing anything
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(VENV)/.dev ## put all Python files into shape
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# The threshold (fail_under in pyproject.toml) holds for each room by itself.
cover: $(VENV)/.dev $(NODE) ## run the tests and measure what they cover in their own processes
	@rm -f .coverage .coverage.*
	$(BIN)/coverage run -m pytest $(PARALLEL) $(ARGS)
	@$(BIN)/coverage combine --quiet
	@status=0; for room in config pubsub server handlers; do \
		echo "coverage of $$room/"; \
		$(BIN)/coverage report --include="$$room/*" || status=1; \
	done; exit $$status

simulate: $(VENV)/.dev ## run the promise under a deterministic scheduler, in very many orders (SEEDS=20000 ARGS="delivery")
	$(BIN)/python tests/support/simulate.py $(if $(SEEDS),--seeds $(SEEDS)) $(ARGS)

rules: $(VENV)/.dev ## take each rule of delivery out of the product and see that a test fails (ARGS="--rule 15")
	$(BIN)/python tests/support/without.py $(ARGS)

fuzz: $(VENV)/.dev ## fuzz what reads bytes of others, each target for a while (SECONDS=60 TARGET=frames)
	$(BIN)/python tests/fuzz/fuzz_run.py $(if $(SECONDS),--seconds $(SECONDS)) $(if $(TARGET),--target $(TARGET)) $(ARGS)

soak: $(VENV)/.dev ## mix faults at random under load and check what came (SECONDS=600 SEED=7)
	PYTHONPATH=.:tests/support $(BIN)/python tests/support/soak.py --seconds $(or $(SECONDS),60) $(if $(SEED),--seed $(SEED))

types: $(NODE) ## write static/galecast.d.ts anew, from the JSDoc of static/galecast.js
	node $(BROWSER)/types.mjs static

screenshots: $(VENV)/.dev ## take the pictures under docs/ anew, from the running product
	$(BIN)/python tests/support/screenshots.py

bench: $(VENV)/.dev ## run all benchmarks, small; ARGS="--full" measures what the documents tell
	$(BIN)/python bench/run.py $(ARGS)

peers: $(PEERS)/.python $(PEERS)/.node $(PEERS)/.go ## install what the benchmarks compare with, into bench/

lock: $(VENV)/.dev ## write the lock files anew (UPGRADE=1 takes the newest releases)
	$(COMPILE) --group build -o requirements-build.lock
	$(COMPILE) pyproject.toml -o requirements.lock
	$(COMPILE) pyproject.toml --group dev -c requirements-build.lock -c requirements.lock \
		-o requirements-dev.lock
	$(COMPILE) bench/peers/requirements.in -o bench/peers/requirements.lock

build: $(VENV)/.dev ## build the wheel into dist/
	$(BIN)/python -m build --wheel --no-isolation

clean: ## remove what tests and builds leave behind
	rm -rf build dist *.egg-info .coverage .coverage.* htmlcov .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -path ./$(VENV) -prune -o -name __pycache__ -type d -exec rm -rf {} +

distclean: clean ## remove the environments as well
	rm -rf $(VENV) $(BROWSER)/node_modules $(PEERS) bench/peers/node_modules

# A lock names everything, so nothing is resolved again (--no-deps): pip would look for a newer release
# of what one package asks for with an extra, and refuse it for want of a hash.
# The files below stand for finished steps: an interrupted one is done again, a changed lock is
# installed again, and otherwise nothing happens.
$(VENV)/.made:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "Galecast needs Python 3.11 or later; $(PYTHON) is not. Set PYTHON=..." >&2; exit 1; }
	@echo "Making $(VENV)/"
	@$(PYTHON) -m venv $(VENV)
	@touch $@

$(VENV)/.run: $(VENV)/.made requirements.lock requirements-build.lock pyproject.toml
	@echo "Installing what Galecast needs into $(VENV)/"
	@$(PIP) install --require-hashes --no-deps -r requirements.lock -r requirements-build.lock
	@$(PIP) install --no-deps --no-build-isolation --no-index -e .
	@$(PIP) check
	@touch $@

$(VENV)/.dev: $(VENV)/.run requirements-dev.lock
	@echo "Installing what development needs into $(VENV)/"
	@$(PIP) install --require-hashes --no-deps -r requirements-dev.lock
	@$(PIP) check
	@touch $@

$(NODE): $(BROWSER)/package-lock.json
	@if ! command -v npm >/dev/null; then \
		echo "There is no npm here: the tests that need it are skipped"; \
	else \
		echo "Installing what the browser's side needs into $(@D)/"; \
		cd $(BROWSER) && npm ci --ignore-scripts --no-audit --no-fund --loglevel=error && \
			touch node_modules/.made || echo "npm ci failed: the tests that need it are skipped"; \
	fi

$(PEERS)/.python: bench/peers/requirements.lock
	@echo "Installing the Python peers into $(PEERS)/venv/"
	@mkdir -p $(PEERS)
	@$(PYTHON) -m venv $(PEERS)/venv
	@$(PEERS)/venv/bin/python -m pip --disable-pip-version-check --quiet install \
		--require-hashes --no-deps -r $<
	@touch $@

$(PEERS)/.node: bench/peers/package-lock.json
	@mkdir -p $(PEERS)
	@if ! command -v npm >/dev/null; then \
		echo "There is no npm here: the peers of Node.js are left out"; \
	else \
		echo "Installing the peers of Node.js into bench/peers/node_modules/"; \
		cd bench/peers && npm ci --ignore-scripts --no-audit --no-fund --loglevel=error && \
			touch ../.peers/.node; \
	fi

$(PEERS)/.go: bench/peers/centrifugo/go.sum bench/peers/mercure/go.sum
	@mkdir -p $(PEERS)/bin
	@if ! command -v go >/dev/null; then \
		echo "There is no Go here: Centrifugo and Mercure are left out"; \
	else \
		echo "Building Centrifugo and Mercure into $(PEERS)/bin/ (minutes)"; \
		(cd bench/peers/centrifugo && go build -o ../../.peers/bin/ github.com/centrifugal/centrifugo/v6) && \
		(cd bench/peers/mercure && go build -o ../../.peers/bin/ github.com/dunglas/mercure/cmd/mercure) && \
			touch $@ || echo "That failed: those of them that are not there are left out"; \
	fi

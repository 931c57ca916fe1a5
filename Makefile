# Every target sets up what it needs in .venv; nothing has to be installed by hand but Python and make.
#
#   PYTHON       the interpreter to build .venv with (3.11, 3.12 or 3.13)
#   TORCH_INDEX  address of an extra package index that holds PyTorch's CPU wheels (see pytorch.org);
#                on Linux without it, pip may choose the build with several gigabytes of GPU libraries
#   EXTRAS       what of pyproject.toml goes into .venv; dev,ray to test the engine `ray` as well
#   PIP_ARGS     more arguments for pip, for example --no-index --find-links=wheelhouse
#   OUT          where `make demo` writes its report
#   TESTARGS     more arguments for pytest
#   WHEELHOUSE   where `make wheelhouse` puts what a machine without internet needs
#   BENCHARGS    more arguments for `fedward bench` in `make bench-peers`

SUPPORTED = import sys, venv, ensurepip; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))
PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11; do \
	"$$p" -c '$(SUPPORTED)' 2>/dev/null && { echo "$$p"; break; }; done)
TORCH_INDEX ?=
EXTRAS ?= dev
PIP_ARGS ?=
OUT ?= OUT
TESTARGS ?=
WHEELHOUSE ?= wheelhouse
BENCHARGS ?=

BIN := .venv/bin
READY := .venv/.ready
PEERS := .venv-peers
FOLDERS := server client common simulations
PIP := $(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt $(PIP_ARGS)
PEERS_PIP := $(PEERS)/bin/python -m pip install --disable-pip-version-check \
	-c benchmarks/peers-constraints.txt $(PIP_ARGS)
QUIET := FLWR_TELEMETRY_ENABLED=0 FLWR_DISABLE_UPDATE_CHECK=1
# One thread per process: two test processes with two threads each fight for the same two cores.
TEST := $(QUIET) OMP_NUM_THREADS=1 $(BIN)/python -m pytest -o consider_namespace_packages=true

.DEFAULT_GOAL := help
.PHONY: help setup demo test slow check lint coverage format bench bench-peers docs proto fuzz \
	wheelhouse clean

help:  ## list the targets
	@grep -hE '^[a-z-]+:.*##' Makefile | sed -E 's/:[^#]*## */\t/' | \
		awk -F '\t' '{ printf "  make %-11s %s\n", $$1, $$2 }'

setup: $(READY)  ## install everything into .venv (the other targets do it by themselves)

$(READY): pyproject.toml constraints.txt
	@"$(PYTHON)" -c '$(SUPPORTED)' 2>/dev/null || { \
		echo "fedward needs Python 3.11, 3.12 or 3.13 with its venv module." >&2; \
		echo "Name one: make PYTHON=/path/to/python3.12 $(MAKECMDGOALS)" >&2; exit 1; }
	@test -x $(BIN)/python || "$(PYTHON)" -m venv .venv
	@echo "installing into .venv (only after a change of pyproject.toml or constraints.txt)"
	@$(PIP) --quiet $(if $(TORCH_INDEX),--extra-index-url "$(TORCH_INDEX)") torch==2.13.0
	@$(PIP) --quiet -e '.[$(EXTRAS)]'
	@touch $(READY)

demo: $(READY)  ## train the breast-cancer study over four virtual hospitals and write OUT/
	$(QUIET) $(BIN)/fedward simulate examples/breast-cancer/study.toml --out "$(OUT)"

test: $(READY)  ## run the tests and the examples in docstrings (minutes)
	$(TEST) -n 2 -m "not slow" --doctest-modules $(TESTARGS) $(FOLDERS) tests

slow: $(READY)  ## run the slow tests: real data, long statistics
	$(TEST) -n 2 -m slow $(TESTARGS) tests

lint: $(READY)  ## check format, style and types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy $(FOLDERS)
	cd benchmarks && ../$(BIN)/mypy --config-file ../pyproject.toml *.py

coverage:  ## fail unless the last `make test TESTARGS=--cov` covered 90 % of the lines
	$(BIN)/coverage report --fail-under=90

check: lint  ## the gate: lint, tests, and line coverage of at least 90 %
	$(MAKE) test TESTARGS="--cov --cov-report= $(TESTARGS)"
	$(MAKE) coverage

format: $(READY)  ## put code into shape
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: $(READY)  ## reproduce the published federated figures beside ours
	$(QUIET) $(BIN)/python benchmarks/flamby.py

# torch first and pinned, as above. An environment of its own: see benchmarks/peers-constraints.txt.
$(PEERS)/.ready: benchmarks/peers-constraints.txt
	@test -x $(PEERS)/bin/python || "$(PYTHON)" -m venv $(PEERS)
	@echo "installing pfl-research and Flower with Ray into $(PEERS)"
	@$(PEERS_PIP) --quiet $(if $(TORCH_INDEX),--extra-index-url "$(TORCH_INDEX)") torch==2.13.0
	@$(PEERS_PIP) --quiet 'pfl[pytorch]' 'flwr[simulation]'
	@touch $(PEERS)/.ready

bench-peers: $(READY) $(PEERS)/.ready  ## measure simulations beside pfl-research and Flower on Ray
	$(QUIET) $(BIN)/fedward bench --only W1 --only W2 --only W3 --peers $(PEERS) $(BENCHARGS)

docs: $(READY)  ## regenerate docs/cli.md and docs/exit-codes.md, and check all links
	$(BIN)/python docs/generate.py

proto: $(READY)  ## regenerate the code of the link's messages from link.proto
	$(BIN)/python -m grpc_tools.protoc -I common --python_out=common --pyi_out=common \
		--grpc_python_out=common common/fedward/common/wire/link.proto

# The same torch as in .venv: without GPU libraries if TORCH_INDEX says so. Everything is a wheel, so
# that the other machine needs no compiler; the sums tell whether the copy is whole.
wheelhouse: $(READY)  ## collect what server and client need on machines without internet
	rm -f "$(WHEELHOUSE)"/*.whl
	$(BIN)/python -m pip wheel --disable-pip-version-check --quiet -c constraints.txt $(PIP_ARGS) \
		$(if $(TORCH_INDEX),--extra-index-url "$(TORCH_INDEX)") \
		-w "$(WHEELHOUSE)" torch==2.13.0 '.[server,postgresql,client]'
	cp constraints.txt "$(WHEELHOUSE)/constraints.txt"
	cd "$(WHEELHOUSE)" && sha256sum -- *.whl constraints.txt > SHA256SUMS
	@du -sh "$(WHEELHOUSE)"

FUZZ_SECONDS ?= 240
fuzz: $(READY)  ## fuzz everything that reads bytes from others, FUZZ_SECONDS for each (an hour in all)
	FEDWARD_FUZZ_S=$(FUZZ_SECONDS) $(TEST) -m slow tests/fuzz

clean:  ## remove what was built, both environments, BENCH and OUT included
	rm -rf .venv $(PEERS) BENCH "$(OUT)" wheelhouse build dist htmlcov .coverage .coverage.* \
		.pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
	find $(FOLDERS) tests -name __pycache__ -type d -prune -exec rm -rf {} +

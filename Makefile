# Everything a new user needs: `make demo` and `make test`. Each builds `.venv` first, from the exact versions of constraints.txt.
PYTHON ?= $(shell for p in python3.11 python3 python3.12 python3.13 python3.14; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && { echo $$p; break; }; done)
BIN := .venv/bin
STAMP := .venv/.made
# One thread per process: two test workers share two cores, and sums keep one order.
ONE_THREAD := OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false

.PHONY: help venv demo test check lint format types layers bench clean

help: ## this list
	@sed -n 's/^\([a-z]*\):.*## \(.*\)/make \1	\2/p' Makefile

venv: $(STAMP) ## build .venv with the otfuse command

# The constraints hold for the build of the package too (pip 25.3 and later read them from a variable of their own).
$(STAMP): pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "otfuse needs Python 3.11 or later: install it, or say make PYTHON=/path/to/python" >&2; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	PIP_CONSTRAINT=constraints.txt PIP_BUILD_CONSTRAINT=constraints.txt PIP_DISABLE_PIP_VERSION_CHECK=1 \
		$(BIN)/python -m pip install --quiet --editable '.[dev]'
	@touch $@

demo: $(STAMP) ## train two pairs of small models on handwritten digits, fuse them, compare with controls
	$(BIN)/otfuse demo demo

test: $(STAMP) ## the whole suite, on two processes
	$(ONE_THREAD) $(BIN)/python -m pytest -n 2 --dist loadgroup

check: lint types layers test ## what must pass before a change goes in

lint: $(STAMP)
	$(BIN)/ruff format --check
	$(BIN)/ruff check

types: $(STAMP)
	$(BIN)/mypy

layers: $(STAMP)
	$(BIN)/lint-imports --no-cache

format: $(STAMP) ## put the code in the house's format
	$(BIN)/ruff check --fix-only
	$(BIN)/ruff format

bench: $(STAMP) ## time and memory of whole processes; PUBLISHED=path checks the goal, MERGEKIT=path/to/mergekit-yaml too
	@missed=0; for job in "run.py $(PUBLISHED)" help.py trace.py "scale.py $(if $(MERGEKIT),--mergekit $(MERGEKIT))"; do \
		echo "benchmarks/$$job"; $(BIN)/python benchmarks/$$job || missed=1; done; exit $$missed

clean: ## remove what make built, and the demo
	rm -rf .venv demo dist build

# make demo: environment, then the whole study on the embedded phantom.
# make quick: what to run before each commit: lint, types, the workflow's plan, the fast tests (two minutes on two cores).
# make test: environment with the checkers, then every check that CI runs.
#   SLURM=1 adds the study through a real SLURM, SLURM=install also installs Debian's packages for it (as root).
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
PYTHON ?= python3
CORES ?= $(shell getconf _NPROCESSORS_ONLN)
VENV ?= .venv
SLURM ?= 0
BIN := $(VENV)/bin

.PHONY: demo quick test check lint types workflow-lint unit report savings sampling verify soak scale compact benchmark gpu \
  docs lock clean

demo: $(VENV)/.run
	$(BIN)/snakemake --cores $(CORES)
	@echo "Tables: results/demo/tables, figures: results/demo/figures, maps: results/demo/maps"

quick: $(VENV)/.dev
	$(MAKE) --no-print-directory --jobs 2 --output-sync lint types workflow-lint
	$(PYTEST) -m "not slow"

test: $(VENV)/.dev
	$(MAKE) --no-print-directory check

check: lint types workflow-lint unit

lint:
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/snakefmt --check Snakefile rules

types:
	$(BIN)/mypy

workflow-lint:
	$(BIN)/snakemake --lint
	$(BIN)/snakemake --cores 1 --dry-run --quiet all

# A file's tests share what they made, so a file stays on one worker; the collection has the dearest files first.
PYTEST := OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 MKL_NUM_THREADS=1 $(BIN)/pytest -n auto --dist loadfile \
  --no-loadscope-reorder --ignore tests/test_slurm.py

unit:
	$(PYTEST) --cov --cov-report=term --cov-fail-under=85
	@if [ "$(SLURM)" = 0 ]; then echo "The test on a real SLURM is left out: make test SLURM=install runs it."; \
	else TEST_SLURM=$(SLURM) $(BIN)/pytest tests/test_slurm.py; fi

# Everything of a run in one page, with captions: open report.html
report: $(VENV)/.run
	$(BIN)/snakemake --report report.html

# What fewer forwards would save and lose, from the run's stored scores: tables/savings.md
savings: $(VENV)/.run
	$(BIN)/snakemake --cores $(CORES) savings

# RISE's true sampling error over repeated runs, on a synthetic score (docs/sampling.md)
sampling: $(VENV)/.run
	PYTHONPATH=scripts OMP_NUM_THREADS=1 $(BIN)/python benchmarks/sampling.py --runs 12

# Compare a finished run with its provenance, and make again what needs no model: make verify RUN=demo
RUN ?= demo
verify: $(VENV)/.run
	PYTHONPATH=scripts $(BIN)/python scripts/verify.py results/$(RUN)

# The long versions of short tests: 50 kills, 570 bad inputs, and with SLURM=1 the real SLURM, in
# results/soak/soak.json. One part alone: make soak PART="--only kills --kills 10"
PART ?=
soak: $(VENV)/.dev
	TEST_SLURM=$(SLURM) PYTHONPATH=scripts:tests $(BIN)/python tests/soak.py results/soak/soak.json $(PART)

# How the workflow grows to 10,000 cases: results/scale/scale.csv (docs/scale.md); after `make demo`
scale: $(VENV)/.run
	PYTHONPATH=scripts $(BIN)/python benchmarks/scale.py

# Train the shipped compact models again from nothing (hours on two cores)
compact: $(VENV)/.run
	$(BIN)/snakemake --cores $(CORES) compact

# Time explanations against captum, lime, xaitk-saliency, MONAI and RISE's formula (docs/benchmarks.md)
benchmark: $(VENV)/.dev
	PYTHONPATH=scripts OMP_NUM_THREADS=$(CORES) $(BIN)/python benchmarks/benchmark.py --threads $(CORES)

# This machine's GPU against its CPU: the same maps, and how fast? results/gpu (docs/gpu.md)
#   make gpu GPU="--weights litemedsam=auto"
GPU ?=
gpu: $(VENV)/.run
	PYTHONPATH=scripts $(BIN)/python benchmarks/gpu.py $(GPU)

# Write config/README.md from the schema
docs: $(VENV)/.run
	PYTHONPATH=scripts $(BIN)/python -c "from xaiclip import config; print(config.document(), end='')" > config/README.md

# Pin every package with its hashes (needs uv)
lock:
	$(PYTHON) envs/lock.py

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

# A lock holds every package, so pip resolves nothing: what is published later cannot change a set-up.
# Packages that are published as source are built by the pinned setuptools.
define install
	$(BIN)/python -m pip install --quiet --no-deps --require-hashes -r envs/requirements-build.txt
	$(BIN)/python -m pip install --quiet --no-deps --no-build-isolation --require-hashes -r $<
	$(BIN)/python -m pip check
	touch $@
endef

$(VENV)/.run: envs/requirements.txt envs/requirements-build.txt | $(VENV)/bin/python
	$(install)

$(VENV)/.dev: envs/requirements-dev.txt envs/requirements-build.txt | $(VENV)/bin/python
	$(install)
	touch $(VENV)/.run

# What costs nothing to make again: caches and the report. A study is removed by name: make clean RUN=demo CONFIRM=yes
CONFIRM ?= no
clean: export STUDY = $(RUN)
clean:
ifeq ($(origin RUN), file)
	rm -rf report.html .pytest_cache .mypy_cache .ruff_cache .coverage .hypothesis
	find scripts tests benchmarks -name __pycache__ -type d -prune -exec rm -rf {} +
	@echo "Studies are kept; make clean RUN=name CONFIRM=yes removes one."
else
	@[[ "$$STUDY" =~ ^[A-Za-z0-9][A-Za-z0-9._-]*$$ ]] || { echo "RUN is no name of a study." >&2; exit 2; }
	@[ -d "results/$$STUDY" ] || { echo "There is no results/$$STUDY." >&2; exit 2; }
	@[ "$(CONFIRM)" = yes ] || { echo "results/$$STUDY would be removed: add CONFIRM=yes." >&2; exit 2; }
	rm -rf "results/$$STUDY"
endif

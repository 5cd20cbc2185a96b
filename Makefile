# Every target does the set-up that it needs; a second call starts at once.
# PYTHON chooses the interpreter (3.11 or newer), INSTALL_SLURM=0 leaves the machine without Slurm.

PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.ready
PIP := $(BIN)/python -m pip --disable-pip-version-check

.PHONY: help test check demo bench gpu gpu-wheels chaos soak slurm

help:
	@echo "make demo        train two losses on generated patients and compare them, in minutes"
	@echo "make test        all tests but the long ones"
	@echo "make check       lint, format, types, layers"
	@echo "make bench       benchmarks, into out/bench/"
	@echo "make gpu         prove and measure the training on a GPU, in eight minutes, into out/gpu/"
	@echo "make gpu-wheels  fetch what a GPU machine without a network lacks, into out/gpu-wheels/"
	@echo "make chaos       faults done to real trainings, at most half an hour, into out/chaos/"
	@echo "make soak        the long tests, up to an hour"

# Three parts run side by side, because tests of Slurm and of whole trainings often wait.
PYTEST := $(BIN)/python -m pytest -m "not soak"
SLURM_TESTS := tests/slurm tests/health tests/benchmarks
TRAINING_TESTS := tests/engine tests/launch tests/evaluation tests/models tests/test_docs.py
test: $(READY) slurm
	@mkdir -p out
	@$(PYTEST) $(SLURM_TESTS) >out/test-slurm.txt 2>&1 & slurm=$$!; \
	$(PYTEST) $(TRAINING_TESTS) >out/test-training.txt 2>&1 & training=$$!; \
	$(PYTEST) $(patsubst %,--ignore=%,$(SLURM_TESTS) $(TRAINING_TESTS)); code=$$?; \
	wait $$slurm || code=$$?; wait $$training || code=$$?; \
	cat out/test-slurm.txt out/test-training.txt; exit $$code

soak: $(READY) slurm
	$(BIN)/python -m pytest -m soak

check: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy -p hsadml_dist
	$(BIN)/lint-imports --no-logo --no-cache

demo: $(READY) slurm
	$(BIN)/python examples/demo.py

bench: $(READY)
	$(BIN)/python -c "import faiss, pytorch_metric_learning" || $(PIP) install -c constraints.txt --no-build-isolation -e ".[bench]"
	$(BIN)/python benchmarks/step.py --json out/bench/step.json
	$(BIN)/python benchmarks/engines.py --json out/bench/engines.json
	$(BIN)/python benchmarks/control.py --json out/bench/control.json
	$(BIN)/python benchmarks/checkpoint.py --json out/bench/checkpoint.json
	$(BIN)/python benchmarks/knn.py --json out/bench/knn.json
	$(BIN)/python benchmarks/loss.py --json out/bench/loss.json
	$(BIN)/python benchmarks/interval_coverage.py --json out/bench/interval_coverage.json
	$(BIN)/python benchmarks/loader.py --json out/bench/loader.json
	if PATH=$$PATH:/usr/sbin command -v slurmctld >/dev/null; then $(BIN)/python benchmarks/requeue.py --json out/bench/requeue.json; fi

# A GPU machine brings its own torch, which then is the one to use.
gpu:
	@if $(PYTHON) -c "import torch" 2>/dev/null; then $(PYTHON) benchmarks/gpu.py $(GPU_OPTIONS); \
	else $(MAKE) $(READY) && $(BIN)/python benchmarks/gpu.py $(GPU_OPTIONS); fi

gpu-wheels: $(READY)
	$(BIN)/python benchmarks/gpu_wheels.py

chaos: $(READY)
	$(BIN)/python -m tests.chaos.run --json out/chaos/chaos.json

slurm:
	@sh slurm/devcluster/install.sh

# torch comes first and alone: what is installed after it takes the one that is there, never another.
$(READY): setup.cfg pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit("Python 3.11 or newer is needed: make PYTHON=..." if sys.version_info < (3, 11) else 0)'
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(PIP) install "$$(grep '^torch==' constraints.txt)" "setuptools>=77"
	$(PIP) install -c constraints.txt --no-build-isolation -e ".[train,deepspeed,demo,export,dev]"
	touch $@

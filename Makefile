# make setup | train | test | check | bench
.DEFAULT_GOAL := help
.PHONY: help setup train test check bench

PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/.ready
# One process a GPU, else two on the CPU.
GPUS := $(shell nvidia-smi -L 2>/dev/null | grep -c '^GPU ')
N ?= $(if $(filter-out 0,$(GPUS)),$(GPUS),2)
# Options for pip when it installs torch, such as an index that has the CPU build.
TORCH_INDEX ?=
ARGS ?=
# A package of benchmarks: engines, spill, frontier, zoo, replay, state8, plan, published, checkpoint, gpu.
BENCH ?= engines
# Two processes on few cores: one thread each is quickest, and the same everywhere.
export OMP_NUM_THREADS ?= 1

help:
	@echo "make setup   make .venv and install what is pinned in constraints.txt"
	@echo "make train   train the DeepSeek-shaped model on $(N) processes; ARGS='train.steps=50 engine.stage=2'"
	@echo "make test    check, then all tests; TESTS='tests/unit -k layout'"
	@echo "make check   ruff, mypy, import-linter"
	@echo "make bench   our engine beside FSDP2, DDP and DeepSpeed; BENCH=spill: within budgets of memory; ARGS='--help'"

setup: $(STAMP)

# torch comes first: everything after it then finds a torch and pulls no other build.
$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "ciuic_dist needs Python 3.11 or newer: make PYTHON=python3.12")'
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --retries 2 --timeout 20 --no-deps $(TORCH_INDEX) -c constraints.txt torch setuptools
	$(BIN)/python -m pip install --quiet --no-build-isolation -c constraints.txt -e '.[train,dev]'
# Apart from everything else: torchvision's compiled part doesn't load beside a CPU build of torch, and transformers trips over it.
	$(BIN)/python -m pip install --quiet --upgrade --no-deps --target .venv/zoo -c constraints.txt timm torchvision
	touch $@

train: setup
	$(BIN)/python -m ciuic_dist.torchrun --standalone --nproc-per-node $(N) -m ciuic_dist.train +model=deepseek $(ARGS)

test: setup check
# By files, since ranks and what was trained are kept for the next test of a file.
	$(BIN)/python -m pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder $(TESTS)

check: setup
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: setup
	$(BIN)/python -m benchmarks.$(BENCH) $(ARGS)

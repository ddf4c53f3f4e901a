# `make replicate` and `make test` set everything up themselves; `make help` lists the rest.

PYTHON ?= $(shell command -v python3.11 || echo python3)
VENV := .venv
BIN := $(VENV)/bin
PEERS := .venv-peers
OLD_PEERS := .venv-peers-old-jax
PEER_PACKAGES := jax==0.10.1 torch==2.13.0 opacus==1.6.0 jax-privacy==2.0.0 vendi-score==0.0.3 dcor==0.7 \
  hyppo==0.5.2 KDEpy==1.1.12 pykeops==2.3 scikit-learn==1.9.1 faiss-cpu==1.15.1 \
  transformers==5.23.0 datasets==5.2.0 peft==0.21.2 simple-parsing==0.1.9 natsort==8.4.0 petname==2.9
OLD_PEER_PACKAGES := jax==0.4.25 jaxlib==0.4.25 'numpy<2' 'scipy<1.13' neural-tangents==0.6.5
# Without what they depend on: torchvision would replace the torch above.
BARE_PEER_PACKAGES := traker==0.3.2 dattri==0.3.0 PyHessian==0.1 curvlinops-for-pytorch==3.0.1 backpack-for-pytorch==1.7.1 \
  einops==0.8.2 einconv==0.1.0 bergson==2.5.1
BENCHMARKS := per_example_gradients empirical_ntk private_training icl dice kernel_matrix \
  kernel_density vendi curvature sketches batch_selection gradient_store
PYTEST := $(BIN)/python -m pytest -n 2 --dist=worksteal $(PYTEST_ARGS)

# What `make replicate` runs, in order; a further pillar is one more name.
REPLICATE := gradients/coherence icl/gradient_descent dice/grid_world
PRESET ?= quick
SEEDS ?= 3

define need-python
@command -v $(PYTHON) >/dev/null || { \
  echo "$(PYTHON) was not found. gradkin needs Python 3.11 or newer: make PYTHON=/path/to/python"; exit 1; }
@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
  echo "gradkin needs Python 3.11 or newer, $(PYTHON) is `$(PYTHON) -V 2>&1`: make PYTHON=/path/to/python"; exit 1; }
@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { \
  echo "$(PYTHON) lacks venv or ensurepip, which make a virtual environment."; \
  echo "On Debian and Ubuntu: sudo apt install python3.11-venv (the version you have)"; exit 1; }
endef

.DEFAULT_GOAL := help
.PHONY: help install replicate test coverage check lint format types imports peers peers-old-jax notebooks bench clean

help:  ## show this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-14s %s\n", $$1, $$2}'

install: $(VENV)/stamp  ## virtual environment in .venv with the pinned versions (1.2 GB)

$(VENV)/stamp: pyproject.toml constraints.txt
	$(call need-python)
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv --clear $(VENV)
	@echo "Installing gradkin[experiments,dev] into $(VENV) ..."
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[experiments,dev]'
	@touch $@

replicate: install  ## replicate the papers of REPLICATE at PRESET=quick, SEEDS=3, and write the report
	@set -e; status=0; for name in $(REPLICATE); do \
	  $(BIN)/python -m experiments run $$name --preset $(PRESET) --seeds $(SEEDS) || status=$$?; \
	done; $(BIN)/python -m experiments report; exit $$status

test: install  ## the test suite
	$(PYTEST)

coverage: install  ## the test suite, and which lines of the library it runs
	$(PYTEST) --cov=gradkin --cov-report=term

check: lint types imports test  ## lint, types, import contract, tests: what CI runs

lint: install  ## ruff, its formatter, codespell
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/codespell

format: install  ## let ruff fix and format
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

types: install  ## pyright
	$(BIN)/pyright --pythonpath $(BIN)/python

imports: install  ## the import contract: arrows point one way
	$(BIN)/lint-imports

notebooks: install  ## run the notebooks
	$(PYTEST) --nbmake --nbmake-timeout=300 colabs

bench: install  ## the benchmarks, each variant in a process of its own
	@set -e; for name in $(BENCHMARKS); do \
	  echo "$$name"; $(BIN)/python -m experiments.benchmarks.$$name; done

peers: $(PEERS)/stamp  ## other libraries to compare with, in .venv-peers

# One by one: a peer that does not install is named and left out.
$(PEERS)/stamp: Makefile
	$(call need-python)
	@$(PEERS)/bin/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv --clear $(PEERS)
	@for peer in $(PEER_PACKAGES); do \
	  echo "Installing $$peer into $(PEERS) ..."; \
	  $(PEERS)/bin/python -m pip install --quiet --disable-pip-version-check $$peer \
	    || echo "skipped: $$peer does not install here"; \
	done
	@$(PEERS)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps \
	  $(BARE_PEER_PACKAGES)
	@touch $@

peers-old-jax: $(OLD_PEERS)/stamp  ## neural-tangents and the old JAX that it needs (2.6 GB)

$(OLD_PEERS)/stamp: Makefile
	$(call need-python)
	@$(OLD_PEERS)/bin/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv --clear $(OLD_PEERS)
	@$(OLD_PEERS)/bin/python -m pip install --quiet --disable-pip-version-check $(OLD_PEER_PACKAGES)
	@touch $@

clean:  ## remove environments, caches and runs
	rm -rf $(VENV) $(PEERS) $(OLD_PEERS) build dist runs htmlcov .coverage .pytest_cache .ruff_cache .hypothesis

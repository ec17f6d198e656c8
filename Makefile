# `make demo` trains a language model on this machine; `make test` checks everything. Both make .venv if it is missing.
#
#   PYTHON=python3.12        which Python makes .venv (3.11 or newer)
#   TORCH_INDEX=URL          where to get torch: an index that holds CPU builds, which are small
#   PIP_ARGS="..."           more arguments for every pip install
#   TRL_PYTHON, VLLM_PYTHON  for `make bench` and `make test-vllm`: a Python that has trl, and one that has vllm
#   GPU_PYTHON               for `make test-gpu` and `make bench-gpu`: a Python whose torch has CUDA
PYTHON ?= python3
VENV ?= .venv
TORCH_INDEX ?=
PIP_ARGS ?=

BIN := $(VENV)/bin
TRL_PYTHON ?= $(BIN)/python
VLLM_PYTHON ?= $(BIN)/python
GPU_PYTHON ?= $(BIN)/python
STAMP := $(VENV)/.installed
# Two names for one thing: older and newer pip take the versions of what builds a package from either.
PIP := PIP_CONSTRAINT=constraints.txt PIP_BUILD_CONSTRAINT=constraints.txt \
  $(BIN)/python -m pip install -qq --disable-pip-version-check $(PIP_ARGS)
EXTRAS := dev,tasks,data,gguf,lora,tensorboard,docs,notebook

.DEFAULT_GOAL := help
.PHONY: help demo test test-vllm test-gpu lint types format bench bench-gpu docs site wheel clean

help: ## say what there is to make
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 16

demo: $(STAMP) ## train a 135M model to add, and write a page about it (an earlier runs/quickstart is moved aside)
	$(BIN)/klent models pull smollm2-135m
	$(BIN)/klent train recipes/quickstart.yaml --fresh

test: lint types ## lint, types, doctests and tests
	$(BIN)/python -m pytest -n auto --maxprocesses 8 --dist loadfile --no-loadscope-reorder --durations=15

test-vllm: ## the vLLM engine against the trainer, in an environment that has vllm: make test-vllm VLLM_PYTHON=...
	PYTHONPATH=src:tests $(VLLM_PYTHON) -m pytest -q -rs tests/rollout/test_vllm.py

lint: $(STAMP) ## style and formatting
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(STAMP) ## static types
	$(BIN)/mypy

format: $(STAMP) ## put the code in the shape that `make lint` wants
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(STAMP) ## run the CPU benchmarks, about 28 idle minutes, and print one table; peers that are missing are left out
	$(BIN)/python benchmarks/head.py
	$(BIN)/python benchmarks/mixture.py
	$(BIN)/python benchmarks/train_pass.py
	$(BIN)/python benchmarks/two_models.py
	$(BIN)/python benchmarks/decode.py --vllm-python $(VLLM_PYTHON)
	-$(BIN)/python benchmarks/step.py --neighbours 0 1 --peer-python $(TRL_PYTHON)
	$(BIN)/python benchmarks/table.py

# Both ask for no more than GPU_PYTHON: a Python with torch for CUDA, triton and klent's light dependencies.
bench-gpu: ## on a GPU: head, decoding, solver and a whole step, beside what is installed of its peers; 5 minutes
	$(GPU_PYTHON) benchmarks/head_gpu.py
	$(GPU_PYTHON) benchmarks/gpu.py

test-gpu: ## on a GPU: exactness, recorded decoding, bit-identical resume, precision that learns; 5 minutes
	$(GPU_PYTHON) tests/gpu/run.py

docs: $(STAMP) ## write the generated pages of docs/ again
	$(BIN)/python -m klent.streams.page
	$(BIN)/python -m klent.config.page
	$(BIN)/python -m klent.cli.reference
	$(BIN)/python -m klent.cli.page
	$(BIN)/python -m klent.report.glossary
	$(BIN)/python -m klent.audit.table
	$(BIN)/python -m klent.environments.games.page
	$(BIN)/python -m klent.claims.page
	$(BIN)/python examples/tables.py

site: $(STAMP) ## build the documentation into site/, strictly; it works from files, without a network
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict

wheel: $(STAMP) ## build wheel and sdist, install the wheel outside the clone, and train from it (needs a package index)
	rm -rf dist && $(BIN)/python -m hatchling build -d dist
	AWAY=$$(mktemp -d) && trap 'rm -rf "$$AWAY"' EXIT && $(PYTHON) -m venv "$$AWAY/venv" && \
	  $(if $(TORCH_INDEX),"$$AWAY/venv/bin/pip" install -qq $(PIP_ARGS) --index-url $(TORCH_INDEX) torch &&) \
	  "$$AWAY/venv/bin/pip" install -qq $(PIP_ARGS) "$$(ls "$$PWD"/dist/*.whl)[all]" && cd "$$AWAY" && \
	  env -u PYTHONPATH venv/bin/klent models pull smollm2-135m && \
	  env -u PYTHONPATH venv/bin/klent train quickstart steps=2 && ls runs/quickstart/report.html

clean: ## remove .venv and caches; runs/ stays
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .hypothesis build dist site
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# Installed once, and again when the versions or the dependencies change.
$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
	  echo "klent needs Python 3.11 or newer, and '$(PYTHON)' is $$($(PYTHON) --version 2>/dev/null || echo missing)."; \
	  echo "Name another: make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 1; }
	@[ -x $(BIN)/python ] || $(PYTHON) -m venv $(VENV) || { \
	  rm -rf $(VENV); echo "python -m venv failed; on Debian and Ubuntu: apt install python3-venv"; exit 1; }
	@echo "installing pinned dependencies into $(VENV) (some minutes, once)"
	@$(if $(TORCH_INDEX),$(PIP) --index-url $(TORCH_INDEX) torch,:)
	@$(PIP) -e '.[$(EXTRAS)]'
	@touch $@

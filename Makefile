# Everything runs in .venv, made on first use and refreshed when pyproject.toml or TORCH changes.

PYTHON ?= python3

# What pip installs first, so that nothing after it chooses a build of torch for you. For another one give pip's own
# words, on the command line or exported: make TORCH="torch==2.9.1 --index-url URL-OF-THE-BUILD" test
TORCH ?= torch==2.13.0

# Test processes; each computes on one thread.
WORKERS ?= 2

BIN := .venv/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check
PYTEST = OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n $(WORKERS)

# A stamp is written when its installation is complete, so an interrupted one starts again.
INSTALLED := .venv/.installed
DOCS_INSTALLED := .venv/.installed-docs

ifneq ($(strip $(TORCH)),$(strip $(shell cat $(INSTALLED) 2>/dev/null)))
.PHONY: $(INSTALLED)
endif

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help demo test test-all lint docs clean

help: ## Show this list.
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

$(INSTALLED): pyproject.toml
	@echo "Installing sdekit and its tools into .venv (once; a few minutes at most)"
	@rm -f $@ $(DOCS_INSTALLED)
	@$(PYTHON) -m venv .venv
	@$(PIP) $(TORCH)
	@$(PIP) --editable '.[demo,test,lint]'
	@echo '$(strip $(TORCH))' > $@

$(DOCS_INSTALLED): $(INSTALLED)
	@echo "Installing the tools for the documentation into .venv"
	@$(PIP) --editable '.[docs]'
	@touch $@

demo: $(INSTALLED) ## Train a small model and sample from it; results under runs/.
	@$(BIN)/python -m sdekit.cli demo

test: lint ## Lint, types, doctests, examples and the fast tests.
	@$(PYTEST) -m "not slow"

test-all: lint ## The same with the slow tests.
	@$(PYTEST)

lint: $(INSTALLED) ## Style, format and types.
	@$(BIN)/ruff check --quiet .
	@$(BIN)/ruff format --check --quiet . || { echo "Run .venv/bin/ruff format ."; exit 1; }
	@$(BIN)/mypy

docs: $(DOCS_INSTALLED) ## Build the documentation into docs/_build/html; a warning is an error.
	@$(BIN)/python -m sphinx -W --keep-going -q -b html docs docs/_build/html
	@echo "docs/_build/html/index.html"

clean: ## Remove .venv, caches and everything built; runs/ stays.
	@rm -rf .venv docs/_build dist build .pytest_cache .mypy_cache .ruff_cache .hypothesis
	@find sdekit tests examples benchmarks docs -name __pycache__ -type d -prune -exec rm -rf {} + 2>/dev/null || true

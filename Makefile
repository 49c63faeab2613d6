.PHONY: demo test test-fast test-lowest coverage style types docs schema models

PYTHON ?= python3
VENV := .venv
LOWEST := .venv-lowest
PIP := $(VENV)/bin/pip --disable-pip-version-check --quiet
export TRANSFORMERS_VERBOSITY ?= error
export TOKENIZERS_PARALLELISM ?= false

# A small ViT forgets handwritten digits, in three requests one after another, and is then attacked.
demo: $(VENV)/.demo
	$(VENV)/bin/accelerate launch --cpu --num_processes 1 --num_machines 1 --mixed_precision no --dynamo_backend no \
		examples/forget.py --recipe deep --audit --disable_tqdm true

# All tests, on both cores. Without ../shared, the tests that need it are skipped.
test: $(VENV)/.test
	$(VENV)/bin/python -m pytest -n 2 --dist worksteal

# The unit tests: at most 90 seconds on two cores.
FAST := $(addprefix tests/,docs/test_docs_site.py test_contributing.py test_docs.py test_duplicates.py test_package.py test_roles.py adapters compat data io ledger methods/test_registry.py metrics models objectives reports tuner training/test_arguments.py training/test_bad_input.py)
test-fast: $(VENV)/.test
	$(VENV)/bin/python -m pytest -n 2 --dist worksteal -m "not slow" $(FAST)

# The unit tests of the package with the lowest releases that pyproject.toml allows.
test-lowest: $(LOWEST)/.test
	$(LOWEST)/bin/python -m pytest -n 2 --dist worksteal -m "not slow" $(filter-out tests/docs/% tests/test_%,$(FAST))

coverage: $(VENV)/.test
	$(VENV)/bin/python -m pytest -n 2 --dist worksteal --cov --cov-report=term --cov-fail-under=90

# Lint, format, direction of imports, and duplicated code.
style: $(VENV)/.dev
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/lint-imports
	$(VENV)/bin/python .ci/duplicates.py src

types: $(VENV)/.dev
	$(VENV)/bin/mypy

# The documentation site, in site/. It fails on a warning, a dead link, and a public name without an entry.
docs: $(VENV)/.docs
	NO_MKDOCS_2_WARNING=1 $(VENV)/bin/mkdocs build --quiet
	$(VENV)/bin/python .ci/docs/check_site.py site

# The JSON Schema of the ledger, which docs/reference/ledger.md publishes.
schema: $(VENV)/.demo
	$(VENV)/bin/python .ci/docs/write_schema.py

# The tables of docs/reference/models.md: every architecture forgets, as a tiny model.
models: $(VENV)/.test
	$(VENV)/bin/python .ci/docs/model_matrix.py

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

# Install torch first and by its exact version: a range would fetch the newest build with several GB of CUDA packages.
$(VENV)/.torch: $(VENV)/bin/python constraints.txt
	$(PIP) install "$$(grep '^torch==' constraints.txt)" -c constraints.txt
	touch $@

$(VENV)/.demo: $(VENV)/.torch pyproject.toml
	$(PIP) install -e ".[examples]" -c constraints.txt
	touch $@

$(VENV)/.test: $(VENV)/.demo
	$(PIP) install -e ".[test]" -c constraints.txt
	touch $@

$(VENV)/.dev: $(VENV)/.test
	$(PIP) install -e ".[dev]" -c constraints.txt
	touch $@

$(VENV)/.docs: $(VENV)/.demo
	$(PIP) install -e ".[docs]" -c constraints.txt
	touch $@

$(LOWEST)/.test: pyproject.toml .ci/lowest.py
	$(PYTHON) -m venv $(LOWEST)
	$(PYTHON) .ci/lowest.py > $(LOWEST)/constraints.txt
	$(LOWEST)/bin/pip --quiet install -e ".[test]" -c $(LOWEST)/constraints.txt
	touch $@

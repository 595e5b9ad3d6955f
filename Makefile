# Set-up and the commands people use. `make demo` and `make test` need Python 3.11 or newer and a package index, no more.
PYTHON ?= python3
BIN := .venv/bin
RUN := $(BIN)/python -m

.PHONY: demo test check test-full bench clean

demo: .venv/demo
	$(BIN)/foveal demo

test: .venv/dev
	$(RUN) pytest -n auto --maxprocesses 4 -m "not full"

check: .venv/dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/codespell README.md CHANGELOG.md CONTRIBUTING.md SECURITY.md docs src tests benchmarks

# Suites with environments of their own.
test-full: .venv/dev
	$(RUN) pytest -m full

bench: .venv/dev
	$(BIN)/python benchmarks/data_path.py
	$(BIN)/python benchmarks/training_step.py
	$(BIN)/python benchmarks/pretrain_small.py
	$(BIN)/python benchmarks/extract.py

.venv/demo: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --constraint constraints.txt --editable ".[demo]"
	touch $@

.venv/dev: .venv/demo
	$(BIN)/pip install --quiet --constraint constraints.txt --editable ".[demo,dev]"
	touch $@

clean:
	rm -rf .venv .venv-* foveal-demo

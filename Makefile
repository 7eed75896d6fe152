# Two commands for a newcomer: `make demo` and `make test`. Each does its own set-up in .venv.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
SOURCES := pyproject.toml setup.py $(shell find ext firmware_stubs -name '*.pyx' -o -name '*.c' -o -name '*.h' -o -name '*.pxd')

.PHONY: demo test simulate lint bench clean setup
demo: $(STAMP)
	$(BIN)/qkdnode demo --seconds 30

test: $(STAMP)
	$(BIN)/python -m pytest

simulate: $(STAMP)
	cd tests && ../$(BIN)/python -m simulation

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/mypy

bench: $(STAMP)
	$(BIN)/qkdnode bench --list

setup: $(STAMP)

$(STAMP): $(SOURCES)
	@command -v $(PYTHON) >/dev/null || { echo "qkdnode needs python3 >= 3.11 with venv: install it first" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "qkdnode needs python3 >= 3.11; PYTHON=... names another interpreter" >&2; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	@touch $(STAMP)

clean:
	rm -rf build dist $(VENV) agent/*.egg-info
	find agent -name '*.so' -delete

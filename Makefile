# Two commands for a newcomer: `make demo` and `make test`. Each does its own set-up in .venv.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
TYPES := $(VENV)/.types
SOURCES := pyproject.toml setup.py $(shell find ext firmware_stubs -name '*.pyx' -o -name '*.c' -o -name '*.h' -o -name '*.pxd')

.PHONY: demo test simulate crash fuzz lint bench clean setup
demo: $(STAMP)
	$(BIN)/qkdnode demo --seconds 30

# On all cores, four at most. Tests with agents, of up to four processes each, run one after the other: tests/conftest.py.
test: $(STAMP)
	$(BIN)/python -m pytest --numprocesses auto --maxprocesses 4 --dist loadgroup

simulate: $(STAMP)
	cd tests && ../$(BIN)/python -m simulation

crash: $(STAMP)
	cd tests && ../$(BIN)/python -m crash

# Arguments in FUZZ; atheris where there is a wheel of it for this Python.
fuzz: $(STAMP)
	@$(BIN)/python -c 'import atheris' 2>/dev/null || $(BIN)/python -m pip install --quiet --disable-pip-version-check --only-binary :all: 'atheris>=2.3' || echo "no wheel of atheris for this Python: going on without" >&2
	@PYTHONPATH=tests $(BIN)/python -m fuzz $(FUZZ)

lint: $(TYPES)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/mypy tests/typing
	$(BIN)/pyright --pythonpath $(BIN)/python
	$(BIN)/python -m mypy.stubtest qkdnode.native --allowlist tests/typing/stubtest.txt --ignore-unused-allowlist

bench: $(STAMP)
	$(BIN)/qkdnode bench --list

setup: $(STAMP)

$(STAMP): $(SOURCES)
	@command -v $(PYTHON) >/dev/null || { echo "qkdnode needs python3 >= 3.11 with venv: install it first" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "qkdnode needs python3 >= 3.11; PYTHON=... names another interpreter" >&2; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	@touch $(STAMP)

# pyright comes with a Node.js of its own: some 200 MB that `make test` does without.
$(TYPES): $(STAMP)
	$(BIN)/python -c 'import tomllib; project = tomllib.load(open("pyproject.toml", "rb"))["project"]; \
		print(*project["optional-dependencies"]["types"], sep="\n")' >$(VENV)/types.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r $(VENV)/types.txt
	@touch $(TYPES)

clean:
	rm -rf build dist $(VENV) agent/*.egg-info
	find agent -name '*.so' -delete

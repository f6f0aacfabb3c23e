# The commands of README.md. Each makes .venv if it is not there and rebuilds only what changed.
PYTHON ?= python3
PY := .venv/bin/python
PIP := $(PY) -m pip --disable-pip-version-check install --quiet
SIDE_BY_SIDE := --numprocesses auto --maxprocesses 4 --dist worksteal
SOURCES := setup.py pyproject.toml $(shell find csrc -type f)

.PHONY: demo test test-slow bench lint format build clean

demo: build
	$(PY) -m onepass demo

test: build
	$(PY) -m pytest $(SIDE_BY_SIDE) -m "not slow and not gpu"

test-slow: build
	$(PY) -m pytest $(SIDE_BY_SIDE) -m "slow and not gpu"

bench: build
	$(PY) -m onepass bench optim

lint: build
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy
	git ls-files '*.h' '*.cpp' '*.cu' '*.cuh' | xargs .venv/bin/clang-format --dry-run --Werror

format: build
	$(PY) -m ruff check --fix .
	$(PY) -m ruff format .
	git ls-files '*.h' '*.cpp' '*.cu' '*.cuh' | xargs .venv/bin/clang-format -i

build: .venv/built

# torch is pinned and comes first: a plain requirement would fetch the newest one.
.venv/torch:
	$(PYTHON) -m venv .venv
	$(PIP) torch==2.13.0
	$(PIP) "setuptools>=77" ninja "pybind11>=3.0" numpy
	touch $@

.venv/built: .venv/torch $(SOURCES)
	$(PIP) --no-build-isolation --editable ".[cli,test,lint]"
	touch $@

clean:
	rm -rf build .venv python/onepass/*.so python/*.egg-info

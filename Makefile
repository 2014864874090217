# `make demo`: from captures to a registered adapter.  `make test`: the promises, checked.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
export PATH := $(abspath $(BIN)):$(PATH)

.PHONY: demo test server worker install base bench-nsoartc figures pictures lint lock clean

demo: install
	dvc repro
	@pinspect summary

test: install
	pytest -n 2 --dist loadgroup --no-loadscope-reorder --cov --cov-report=term --cov-fail-under=85

# A Prefect server and an MLflow server on loopback, and a worker of this checkout's deployments: docs/operations.md.
server: install
	python -m flows.servers

worker: export PREFECT_API_URL ?= http://127.0.0.1:4200/api
worker: install
	prefect work-pool inspect pinspect > /dev/null 2>&1 || prefect work-pool create pinspect --type process
	prefect --no-prompt deploy --all
	python -m flows.zombies
	prefect worker start --pool pinspect

install: $(VENV)/installed

# The stamp is touched last: an interrupted installation is taken up again.
$(VENV)/installed: requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(0 if (3, 11) <= v < (3, 13) else "pinspect needs Python 3.11 or 3.12, found %d.%d; try: make PYTHON=python3.11" % v)'
	$(PYTHON) -m venv $(VENV)
	pip install --quiet --requirement requirements.lock
	pip install --quiet --no-deps --no-build-isolation --editable .
	touch $@

base: install
	python -m pinspect.pretraining.train --out models/base --work build/base

bench-nsoartc: install
	python benchmarks/nsoartc.py

figures: install
	python tools/figures.py

pictures: install
	python tools/nsoartc_pictures.py
	python tools/overview_picture.py

lint: install
	ruff check . && ruff format --check .

# From an environment that holds just this project and its test extra.
lock:
	rm -rf build/lock && $(PYTHON) -m venv build/lock
	build/lock/bin/pip install --quiet --editable '.[test]'
	build/lock/bin/pip freeze --exclude-editable --all | sed 's/+cpu$$//' | grep -v '^pip==' > requirements.lock

clean:
	rm -rf build .pytest_cache .ruff_cache .coverage

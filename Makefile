# `make demo`: from captures to a registered adapter.  `make series`: the second line.
# `make test`: all tests.  `make unit`: the fast ones.  `make test-stack`: those with TRL and Unsloth.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
export PATH := $(abspath $(BIN)):$(PATH)
# Stages and tests start hundreds of processes; without bytecode files each of them would compile the source again.
unexport PYTHONDONTWRITEBYTECODE

# Without an NVIDIA card, PyTorch's CPU build saves gigabytes of CUDA libraries.
CPU_INDEX := https://download.pytorch.org/whl/cpu
LOCK := $(if $(GPU),requirements-gpu.lock,requirements.lock)

.PHONY: demo series test unit test-stack server worker install install-dev base bench-nsoartc figures pictures lint lock clean

demo: install
	dvc repro
	@pinspect summary

series: install
	cd lines/series && dvc repro && pinspect summary

# Six workers on two cores, because many tests wait for servers. Each worker takes whole files. COVERAGE=1 also measures
# which lines the tests run, which takes the tests' own processes half as long again.
test: install-dev
	pytest -n 6 --dist loadfile --no-loadscope-reorder $(if $(COVERAGE),--cov --cov-report=term --cov-fail-under=85)

# No server, no training.
unit: install-dev
	pytest -q -n 2 --dist loadfile tests/unit

# Tests with TRL, Unsloth, datasets and torchvision, on a CPU. Their environment sees the packages of $(VENV), and holds
# what requirements-gpu.lock has beyond requirements.lock.
STACK := $(VENV)/stack
test-stack: $(STACK)/installed
	UNSLOTH_ALLOW_CPU=1 UNSLOTH_COMPILE_LOCATION=$(STACK)/compiled $(STACK)/bin/python -m pytest tests/stack

lint: install-dev
	ruff check .
	ruff format --check .
	pyright
	lint-imports

# A Prefect server and an MLflow server on loopback, and a worker of this checkout's deployments: docs/operations.md.
server: install
	python -m flows.servers

worker: export PREFECT_API_URL ?= http://127.0.0.1:4200/api
worker: install
	prefect work-pool create pinspect --type process --overwrite --base-job-template flows/job_template.json
	prefect --no-prompt deploy --all
	python -m flows.automations
	python -m flows.worker

base: install
	python -m pinspect.pretraining.train --out models/base --work build/base

bench-nsoartc: install
	python benchmarks/nsoartc.py

figures: install
	python tools/figures.py

pictures: install
	python tools/nsoartc_pictures.py
	python tools/overview_picture.py

install: $(VENV)/installed
install-dev: $(VENV)/installed-dev

# Each stamp is written last: after an interruption, make starts the installation again.
# PyTorch comes first and without hashes, because its builds for CPU and GPU differ. Everything else is locked by hash.
$(VENV)/installed: $(LOCK) requirements-torch.txt pyproject.toml
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(0 if (3, 11) <= v < (3, 13) else "pinspect needs Python 3.11 or 3.12, found %d.%d; try: make PYTHON=python3.11" % v)'
	$(PYTHON) -m venv $(VENV)
	nvidia-smi > /dev/null 2>&1 \
	  || pip install --quiet --retries 0 --timeout 15 --requirement requirements-torch.txt --index-url $(CPU_INDEX) 2> /dev/null \
	  || echo "$(CPU_INDEX) cannot be reached: installing PyTorch's default build"
	pip install --quiet --requirement requirements-torch.txt
	pip install --quiet --no-deps --require-hashes --requirement $(LOCK)
	pip install --quiet --no-deps --no-build-isolation --editable .
	touch $@

$(VENV)/installed-dev: $(VENV)/installed requirements-dev.lock
	pip install --quiet --no-deps --require-hashes --requirement requirements-dev.lock
	touch $@

$(STACK)/installed: $(VENV)/installed-dev requirements-gpu.lock tools/stack.py
	$(BIN)/python tools/stack.py $(STACK)
	touch $@

# Resolves the locks anew; versions stay as they are unless pyproject.toml requires others. PyTorch's own requirements
# come from its CPU build, so that the locks name no CUDA library.
COMPILE = CUSTOM_COMPILE_COMMAND='make lock' pip-compile --quiet --generate-hashes --strip-extras --annotation-style line --no-emit-index-url \
  --no-emit-find-links --extra-index-url $(CPU_INDEX) --constraint requirements-torch.txt \
  --unsafe-package pinspect --unsafe-package pip --unsafe-package torch pyproject.toml

lock: install-dev
	$(COMPILE) --extra pipeline --extra station --extra postgres --extra s3 --output-file requirements.lock
	$(COMPILE) --extra station --extra postgres --output-file requirements-station.lock --constraint requirements.lock
	$(COMPILE) --extra dev --output-file requirements-dev.lock --constraint requirements.lock
	$(COMPILE) --extra gpu --extra station --extra postgres --extra s3 --unsafe-package triton --output-file requirements-gpu.lock

clean:
	rm -rf build .pytest_cache .ruff_cache .coverage

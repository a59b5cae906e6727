# The course's commands. `make` alone lists them.
# How long waiting threads spin (see srlab/__init__.py); it must be set before torch is imported.
export GOMP_SPINCOUNT ?= 5000
VENV    := .venv
BIN     := $(VENV)/bin
PROFILE ?= lite
MINUTES ?= 15
# Processes that share the tests, and chapters that run at a time. (Those of the full profile
# share one GPU.)
WORKERS ?= 2
JOBS    ?= $(if $(filter full,$(PROFILE)),1,2)
# The first Python from 3.11 to 3.13 that is installed; `make PYTHON=/path/to/python` overrides.
PYTHON  ?= $(firstword $(foreach p,python3.12 python3.13 python3.11 python3 python,$(shell \
	$(p) -c 'import sys; (3,11) <= sys.version_info[:2] <= (3,13) and print("$(p)")' 2>/dev/null)))
# Tests of what the lesson is about, without trainings, subprocesses and downloads.
FAST := bank config critics degradation grow interpolation losses metrics order progress protocol \
	scores state statistics tiling
CHAPTERS := $(sort $(wildcard notebooks/[0-9][0-9]_*.ipynb))

.PHONY: help course check lint test lab site bench soak tables figures refresh format lock clean

help:
	@echo "make course   run all chapters, write them to runs/$(PROFILE)/ (PROFILE=smoke, lite or full)"
	@echo "make check    lint, types and the lesson's own tests, in under a minute"
	@echo "make test     lint, types, unit tests, then every chapter against its stored outputs"
	@echo "make lab      open the chapters in JupyterLab"
	@echo "make site     render the stored chapters and the docstrings to site/, a static web site"
	@echo "make bench    measure this machine: crops and training patches a second"
	@echo "make soak     kill, starve and damage for 15 minutes, and count what is lost (MINUTES=3 for less)"
	@echo "make tables   bring tables and counts of the READMEs up to date with notebooks/results/"
	@echo "make figures  rebuild figures/"
	@echo "make refresh  run the chapters in place, to store new outputs (CHAPTER=02 for one)"
	@echo "make lock     renew requirements.lock from pyproject.toml"

course: $(VENV)/ready
	@echo "Running all chapters, profile $(PROFILE): about 9 minutes on two CPU cores for lite, less for smoke."
	@$(BIN)/srlab course run --profile $(PROFILE) --jobs $(JOBS)

check: lint
	@$(BIN)/python -m pytest -q $(FAST:%=tests/test_%.py)

lint: $(VENV)/ready
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy

# A worker takes whole files, in this order: what lasts longest comes first. With more
# than one thread each, they would fight for the cores.
test: lint
	@echo "Every chapter against its stored outputs, and all tests, in $(WORKERS) processes."
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n $(WORKERS) --dist loadfile --no-loadscope-reorder \
		--nbval --nbval-current-env --nbval-cell-timeout=900 \
		--nbval-sanitize-with tests/nbval_sanitize.cfg $(CHAPTERS) tests/test_notebooks.py tests

lab: $(VENV)/ready
	@$(BIN)/jupyter lab --notebook-dir=. notebooks/00_start_here.ipynb

site: $(VENV)/ready
	@$(BIN)/python -m sphinx -q -W --keep-going -d build/site docs site
	@echo "Open site/index.html"

bench: $(VENV)/ready
	@$(BIN)/srlab bench

soak: $(VENV)/ready
	@$(BIN)/python scripts/soak.py --minutes $(MINUTES)

tables: $(VENV)/ready
	@$(BIN)/python scripts/tables.py

figures: $(VENV)/ready
	@$(BIN)/python figures/make_figures.py

refresh: $(VENV)/ready
	@$(BIN)/srlab course refresh $(CHAPTER)

format: $(VENV)/ready
	@$(BIN)/ruff check --fix . && $(BIN)/ruff format .

lock: $(VENV)/ready
	@$(BIN)/uv pip compile -q --universal --python-version 3.11 --extra test --no-header --upgrade \
		pyproject.toml -o requirements.lock

clean:
	rm -rf runs

# uv installs in parallel; where it cannot reach the packages (an index configured for pip only),
# pip itself does the same more slowly.
$(VENV)/ready: requirements.lock pyproject.toml
	@test -n "$(PYTHON)" || { echo "No Python 3.11, 3.12 or 3.13 found: install one, or run make PYTHON=/path/to/python."; exit 1; }
	@echo "Creating $(VENV) with $(PYTHON): a download of about 3 GB, 1 to 5 minutes."
	@$(PYTHON) -m venv $(VENV) || { echo "python -m venv failed: on Debian and Ubuntu, install python3-venv."; exit 1; }
	@$(BIN)/python -m pip install -q --disable-pip-version-check uv
	@$(BIN)/uv pip install -q --python $(BIN)/python -r requirements.lock -e . \
		|| $(BIN)/python -m pip install -q --disable-pip-version-check -r requirements.lock -e .
	@touch $@

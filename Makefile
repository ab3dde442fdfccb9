# `make quickstart` shows what v2f is; `make test` and `make test-slow` run the tests. Each sets up .venv first.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
RUN := runs/quickstart
export PIP_DISABLE_PIP_VERSION_CHECK = 1

.PHONY: quickstart siblings sound test test-slow check lint pythons golden standins synthetic clean

# Exact versions for the Python that CI uses; any other Python gets what pyproject.toml allows. Of resemblyzer only a
# file of weights is used; what it requires does not install everywhere.
$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 13) and "v2f needs Python 3.10 to 3.13: make PYTHON=python3.11 ...")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --progress-bar on $(shell $(PYTHON) -c 'import sys; print("-c constraints.txt" * (sys.version_info[:2] == (3, 11)))') -e '.[dev]'
	$(BIN)/python -m pip install --no-deps resemblyzer==0.1.4
	touch $@

quickstart: $(VENV)/.installed
	$(BIN)/v2f shards pack shards/quickstart.yaml
	$(BIN)/accelerate launch --quiet --config_file launch/accelerate/one-process.yaml v2f/train.py --config launch/recipes/quickstart.yaml --resume auto
	$(BIN)/v2f eval $(RUN)
	$(BIN)/v2f report $(RUN)

# One small run of each of the other systems, and one page that shows them all; under half an hour on 2 cores.
siblings: $(VENV)/.installed
	$(BIN)/python bench/siblings.py

# Sound for pictures: four small runs, their pipeline, and one page; under half an hour on 2 cores.
sound: $(VENV)/.installed
	$(BIN)/python bench/sound.py

test: $(VENV)/.installed
	$(BIN)/python -m pytest -n 2 -m 'not slow'

# The slow tests: real training runs, kills, launchers, Slurm, PostgreSQL, and the commands in the documents.
test-slow: $(VENV)/.installed
	$(BIN)/python -m pytest -n 2 --dist loadgroup -m slow

lint: $(VENV)/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

check: lint test

# Install the wheel as a user does, under the lowest and the highest Python. Needs the package registry.
pythons: $(VENV)/.installed
	$(BIN)/python tests/pythons.py

# Recompute the first losses of every recipe: any difference it shows is a change of the math.
golden: $(VENV)/.installed
	$(BIN)/python tests/golden/losses.py

# Retrain the small nets that ship with the package on the synthetic world (about 15 minutes on 2 cores).
standins: $(VENV)/.installed
	$(BIN)/python -m v2f.standins.train all

# The longer synthetic run, about 10 minutes on 2 cores in total.
synthetic: $(VENV)/.installed
	$(BIN)/v2f shards pack shards/synthetic.yaml
	$(BIN)/accelerate launch --quiet --config_file launch/accelerate/one-process.yaml v2f/train.py --config launch/recipes/synthetic.yaml --resume auto
	$(BIN)/v2f eval runs/synthetic
	$(BIN)/v2f report runs/synthetic

clean:
	rm -rf $(VENV) build dist *.egg-info

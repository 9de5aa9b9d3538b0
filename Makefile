# Every target sets up .venv first; it is installed again only when its inputs change.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
SEED ?= 0
RUNS ?= runs
# Without these, accelerate lists its defaults at each start; --quiet leaves an error at our one line.
LAUNCH := $(BIN)/accelerate launch --quiet --num_processes 1 --num_machines 1 --mixed_precision no --dynamo_backend no
export NO_ALBUMENTATIONS_UPDATE := 1

.PHONY: demo test coverage quality clean

$(VENV)/.installed: setup.cfg setup.py pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --no-compile --constraint constraints.txt torch
	$(BIN)/python -m pip install --quiet --no-compile --constraint constraints.txt --editable '.[test]'
	touch $@

# SupOnly and U2PL, robust, on the same labelled images of the demo data, then both as one table.
demo: $(VENV)/.installed
	$(LAUNCH) training_scripts/train_u2pl.py training_scripts/recipes/demo_suponly.yaml --seed $(SEED) \
		--output_dir $(RUNS)/demo_suponly_seed$(SEED) >/dev/null
	$(LAUNCH) training_scripts/train_u2pl.py training_scripts/recipes/demo_u2pl_robust.yaml --seed $(SEED) \
		--output_dir $(RUNS)/demo_robust_seed$(SEED) >/dev/null
	$(BIN)/python training_scripts/compare.py $(RUNS)/demo_suponly_seed$(SEED) $(RUNS)/demo_robust_seed$(SEED)

test: $(VENV)/.installed
	$(BIN)/python -m pytest -q --numprocesses auto --maxprocesses 4 --dist worksteal

# The same with the lines that no test runs; half as long again.
coverage: $(VENV)/.installed
	$(BIN)/python -m pytest -q --numprocesses auto --maxprocesses 4 --dist worksteal --cov --cov-report=term:skip-covered

quality: $(VENV)/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

clean:
	rm -rf $(VENV) build *.egg-info

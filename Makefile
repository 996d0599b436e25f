# `make sweep` and `make test` do all set-up on a fresh machine; a second call installs nothing.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
ARGS ?=
# Tests run in this many processes side by side, each with one thread; a file of tests stays in one.
PROCESSES ?= 2

.PHONY: sweep test lint types unit soak train bench docs clean install

sweep: $(STAMP)
	$(BIN)/python launch.py sweep=full_ablation $(ARGS)

test: lint types unit

lint: $(STAMP)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .

types: $(STAMP)
	$(BIN)/mypy

unit: $(STAMP)
	$(BIN)/pytest -n $(PROCESSES) --dist loadfile $(ARGS)

# Half an hour of random faults on real sweeps, and tests too long for every change; SOAK_SECONDS and SOAK_SEED change how
# long and which.
soak: $(STAMP)
	$(BIN)/pytest -m soak -s $(ARGS)

train: $(STAMP)
	$(BIN)/python launch.py mode=train model=tiny_faces $(ARGS)

bench: $(STAMP)
	$(BIN)/python -m benchmarks.work --json
	$(BIN)/python -m benchmarks.speed --json
	$(BIN)/python -m benchmarks.statistics --json

# The site of docs/, in build/docs.
docs: $(STAMP)
	$(BIN)/python -m mkdocs build --strict -f docs/site/mkdocs.yml

install: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q -c constraints.txt -e '.[dev]'
	touch $@

clean:
	rm -rf $(VENV) build *.egg-info .pytest_cache .mypy_cache .ruff_cache

# `make` prints what there is; each target is one command. ARGS passes settings: make glue-sweep ARGS="task=mrpc seeds=[0,1]"
PYTHON ?= python3
BIN := .venv/bin
RUN := $(BIN)/melora-bench
DONE := .venv/.installed
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n logical --maxprocesses 4
# Python compiles what it imports, which is less than pip would.
PIP := $(BIN)/python -m pip install --no-compile --quiet --disable-pip-version-check -c requirements.lock torch

# `make sweep TABLE=x task=mrpc` would start the whole grid: a run's settings are no variables of make.
KNOWN := ARGS BIN DATA INSTRUCT PYTHON SCORE SHELL TABLE
GIVEN := $(foreach name,$(.VARIABLES),$(if $(filter command,$(firstword $(origin $(name)))),$(name)))
ifneq ($(filter-out $(KNOWN),$(GIVEN)),)
$(error $(filter-out $(KNOWN),$(GIVEN)): no variable of this Makefile; the settings of runs go into ARGS, as in ARGS="task=mrpc")
endif

.DEFAULT_GOAL := help
.PHONY: help setup quickstart test test-slow test-gpu coverage lint format check glue-sweep instruct-sweep instruct-quickstart plan sweep status tables figures report docs bench gpu-proof lock

help:  ## print every target
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-19s %s\n", $$1, $$2}'

setup: $(DONE)  ## build .venv from requirements.lock (again only when it or pyproject.toml changed)

$(DONE): requirements.lock pyproject.toml
	$(PYTHON) -m venv .venv && $(PIP) -e '.[dev]' && touch $@

quickstart: $(DONE)  ## train every method on a laptop and print the table (minutes)
	$(RUN) sweep quickstart $(ARGS)

test: $(DONE)  ## the tests that take seconds, on up to four cores
	$(PYTEST)

test-slow: $(DONE)  ## the tests that take minutes
	$(PYTEST) -m slow

test-gpu: $(DONE)  ## the tests that need a CUDA device
	$(BIN)/python -m pytest -m gpu

coverage: $(DONE)  ## the tests that take seconds, and which lines they do not reach
	$(PYTEST) --cov --cov-report=term-missing:skip-covered

lint: $(DONE)  ## ruff and mypy, changing nothing
	$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/mypy

format: $(DONE)  ## ruff, mending what it can
	$(BIN)/ruff check --fix . && $(BIN)/ruff format .

check: lint test tables report  ## lint, test, and what is made from the committed records is as it is committed
	git diff --exit-code results

glue-sweep: $(DONE)  ## both papers' Table 2: every missing point (ARGS narrows or overrides)
	$(RUN) sweep melora_table2 mplora_table2 $(ARGS)

INSTRUCT ?= melora_table3
instruct-sweep: $(DONE)  ## train and score a table of INSTRUCTEVAL (INSTRUCT=name, ARGS for training, SCORE for scoring: HumanEval needs allow_code_execution=true)
	$(RUN) sweep $(INSTRUCT) $(ARGS) $(if $(SCORE),-- $(SCORE))

HOLDS := no package carries free instructions; DIR holds alpaca/ (one .json, .jsonl or .parquet) and instruct/ (mmlu/ bbh/ drop/ humaneval/)
QUICK = results_dir=outputs/instruct_quickstart limit=8 allow_code_execution=true data=local 'data.root=$(DATA)/instruct'
instruct-quickstart: $(DONE)  ## tune and score SmolLM2 (DATA=DIR with alpaca/*.json and instruct/{mmlu,bbh,drop,humaneval}/)
	$(RUN) sweep instruct_quickstart data=local 'data.root=$(or $(DATA),$(error DATA=DIR is missing: $(HOLDS)))/alpaca' -- $(QUICK)

plan: $(DONE)  ## what a grid will cost on this device: points, steps, tokens, hours (TABLE=name)
	@$(RUN) plan $(TABLE) $(ARGS)

sweep: $(DONE)  ## every missing point of one grid, then its table (TABLE=name, ARGS narrows or overrides)
	$(RUN) sweep $(or $(TABLE),$(error TABLE=NAME is missing: of configs/table)) $(ARGS)

status: $(DONE)  ## the points of a grid as done, running, failed, missing (TABLE=name, ARGS as for the sweep)
	@$(RUN) status $(TABLE) $(ARGS)

tables: $(DONE)  ## results/tables from the records under results/runs
	$(RUN) tables

figures: $(DONE)  ## results/figures from the records under results/runs
	$(RUN) figures

report: figures  ## results/report.html: tables, figures, verdicts and every run on one page
	$(RUN) report

docs: $(DONE)  ## docs/methods.md, facts of every method, counted and measured, and docs/tables.md
	$(RUN) docs

bench: $(DONE)  ## what an adapter costs on one layer, and rows per second of the floor, PEFT + Trainer, and ours, on a CPU
	$(BIN)/python scripts/bench_adapters.py && $(BIN)/python scripts/bench_training.py $(ARGS)

gpu-proof: $(DONE)  ## what only a GPU can show, stage by stage; a second start goes on (ARGS="--data DIR" with GLUE's parquet files)
	$(BIN)/python scripts/gpu_proof.py $(ARGS)

LOCK := .venv-lock/bin/pip
lock: $(DONE)  ## write requirements.lock anew from the newest versions that pyproject.toml allows
	$(PYTHON) -m venv .venv-lock && $(LOCK) install --quiet '.[dev,instruct,launchers,qlora,ray,track]' \
	&& $(LOCK) freeze --exclude melora_bench | sed 's/+cpu$$//' > requirements.lock && rm -r .venv-lock

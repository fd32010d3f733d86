# `make` prints what there is. ARGS passes Hydra overrides: make glue-sweep ARGS="task=mrpc seeds=[0,1]"
PYTHON ?= python3
BIN := .venv/bin
DONE := .venv/.installed
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n logical --maxprocesses 4
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c requirements.lock torch

# `make sweep TABLE=x task=mrpc` would start the whole grid: a run's settings are no variables of make.
KNOWN := ARGS BENCHMARKS BIN DATA INSTRUCT PYTHON SCORE SHELL TABLE
GIVEN := $(foreach name,$(.VARIABLES),$(if $(filter command,$(firstword $(origin $(name)))),$(name)))
ifneq ($(filter-out $(KNOWN),$(GIVEN)),)
$(error $(filter-out $(KNOWN),$(GIVEN)): no variable of this Makefile; the settings of runs go into ARGS, as in ARGS="task=mrpc")
endif

.DEFAULT_GOAL := help
.PHONY: help setup quickstart test test-slow test-gpu lint format check glue-sweep instruct-sweep instruct-quickstart plan sweep status tables figures report docs bench gpu-proof lock

help:  ## print every target
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-19s %s\n", $$1, $$2}'

setup: $(DONE)  ## build .venv from requirements.lock (again only when it or pyproject.toml changed)

$(DONE): requirements.lock pyproject.toml
	$(PYTHON) -m venv .venv
	$(PIP) -e '.[dev]'
	@touch $@

quickstart: $(DONE)  ## train every method on a laptop and print the table (minutes)
	$(BIN)/python scripts/train.py -m table=quickstart $(ARGS)
	$(BIN)/python scripts/tables.py quickstart $(ARGS)

test: $(DONE)  ## the tests that take seconds, on up to four cores
	$(PYTEST)

test-slow: $(DONE)  ## the tests that take minutes
	$(PYTEST) -m slow

test-gpu: $(DONE)  ## the tests that need a CUDA device
	$(BIN)/python -m pytest -m gpu

lint: $(DONE)  ## ruff, changing nothing
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: $(DONE)  ## ruff, mending what it can
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

check: lint test tables report  ## lint, test, and what is made from the committed records is as it is committed
	git diff --exit-code results

glue-sweep: $(DONE)  ## both papers' Table 2: every missing point (ARGS narrows or overrides)
	@failed=0; none=0; for table in melora_table2 mplora_table2; do \
		$(BIN)/python scripts/train.py -m table=$$table $(ARGS); code=$$?; \
		case $$code in 0) ;; 130) exit 130;; 3) none=$$((none + 1));; *) failed=1;; esac; done; \
	[ $$failed = 0 ] && [ $$none -lt 2 ]  # 3: the selection has no point of that table, 130: Ctrl-C

INSTRUCT ?= melora_table3
SCORE ?= backbone=llama2_7b backbone.dtype=bfloat16 precision=bf16
BENCHMARKS = benchmark=mmlu,drop,humaneval,bbh
instruct-sweep: $(DONE)  ## train and score a table of INSTRUCTEVAL (INSTRUCT=name, ARGS for training, SCORE for scoring, where HumanEval needs allow_code_execution=true and a slice an experiment=NAME)
	@failed=0; try() { echo "$$@"; "$$@" || failed=$$?; [ $$failed != 130 ] || exit 130; }; \
	name=$$($(BIN)/python scripts/status.py --experiment $(INSTRUCT) $(ARGS)) || exit; \
	try $(BIN)/python scripts/train.py -m table=$(INSTRUCT) $(ARGS); \
	try $(BIN)/python scripts/instructeval.py -m $(BENCHMARKS) experiment=$$name $(SCORE); \
	try $(BIN)/python scripts/instructeval.py -m $(BENCHMARKS) run=$$name experiment=$$name $(SCORE); \
	$(BIN)/python scripts/tables.py $(INSTRUCT) experiment=$$name $(SCORE) && exit $$failed

QUICK = results_dir=outputs/instruct_quickstart limit=8 allow_code_execution=true data=local 'data.root=$(DATA)/instruct'
instruct-quickstart: $(DONE)  ## tune and score SmolLM2 (DATA=DIR with alpaca/*.json and instruct/{mmlu,bbh,drop,humaneval}/)
	@[ -d "$(subst ~/,$(HOME)/,$(DATA))/instruct" ] || { echo 'error: DATA=DIR is missing: no package carries free instructions; DIR holds' \
		'alpaca/ (one .json, .jsonl or .parquet) and instruct/ (mmlu/ bbh/ drop/ humaneval/)' >&2; exit 2; }
	$(MAKE) instruct-sweep INSTRUCT=instruct_quickstart ARGS="data=local 'data.root=$(DATA)/alpaca'" SCORE="$(QUICK)"

plan: $(DONE)  ## what a grid will cost on this device: points, steps, tokens, hours (TABLE=name)
	@$(BIN)/python scripts/plan.py $(TABLE) $(ARGS)

sweep: $(DONE)  ## every missing point of one grid, then its table (TABLE=name, ARGS narrows or overrides)
	$(BIN)/python scripts/train.py -m table=$(or $(TABLE),$(error TABLE=NAME is missing: of configs/table)) $(ARGS)
	$(BIN)/python scripts/tables.py $(TABLE) $(ARGS)

status: $(DONE)  ## the points of a grid as done, running, failed, missing (TABLE=name, ARGS as for the sweep)
	@$(BIN)/python scripts/status.py $(TABLE) $(ARGS)

tables: $(DONE)  ## results/tables from the records under results/runs
	$(BIN)/python scripts/tables.py

figures: $(DONE)  ## results/figures from the records under results/runs
	$(BIN)/python scripts/figures.py

report: figures  ## results/report.html: tables, figures, verdicts and every run on one page
	$(BIN)/python scripts/report.py

docs: $(DONE)  ## docs/methods.md: facts of every method, counted and measured
	$(BIN)/python scripts/methods.py

bench: $(DONE)  ## what an adapter costs on one layer, and rows per second of the floor, PEFT + Trainer, and ours, on a CPU
	$(BIN)/python scripts/bench_adapters.py
	$(BIN)/python scripts/bench_training.py $(ARGS)

gpu-proof: $(DONE)  ## what only a GPU can show, stage by stage; a second start goes on (ARGS="--data DIR" with GLUE's parquet files)
	$(BIN)/python scripts/gpu_proof.py $(ARGS)

lock: $(DONE)  ## write requirements.lock anew from the newest versions that pyproject.toml allows
	$(PYTHON) -m venv .venv-lock
	.venv-lock/bin/pip install --quiet '.[dev,instruct,launchers,qlora,ray,track]'
	.venv-lock/bin/pip freeze --exclude melora_bench | sed 's/+cpu$$//' > requirements.lock
	rm -r .venv-lock

# Two commands do everything: `make run` and `make test`. The rest is for people who change kcode.

PYTHON ?= python3
VENV   ?= .venv
# One known-good build; any torch >= 2.6 that is already in $(VENV) is kept.
TORCH  ?= torch==2.13.0
MODEL  ?= qwen2.5-coder-1.5b
EXAMPLE ?= shopping-cart
LIMIT  ?= 20
SPLIT  ?= held
KILLS  ?= 100
MINI_CONFIG ?= mini.yaml
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed

.PHONY: run test test-slow check format bench bench-kernels bench-moe bench-bugs bench-mini bench-sandbox bench-edits bench-tui soak clean setup

setup: $(STAMP)

$(STAMP): pyproject.toml hatch_build.py $(wildcard backend/csrc/cpu/*)
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q --upgrade pip
	$(BIN)/python -c "import torch" 2>/dev/null || $(BIN)/python -m pip install -q "$(TORCH)"
	$(BIN)/python -m pip install -q -e ".[local,dev]"
	touch $(STAMP)

# Set-up, the model, and kcode on a real bug: in the TUI on a terminal, headless otherwise.
run: setup
	$(BIN)/kcode models pull $(MODEL) --if-missing
	$(BIN)/python -m kcode_bench.demo --example $(EXAMPLE) --model $(MODEL)

test: setup
	$(BIN)/python -m pytest -n 3 --dist loadfile -m "not model and not slow and not gpu and not peer"

# What `make test` leaves out: slow tests and those with the real model.
test-slow: setup
	$(BIN)/kcode models pull $(MODEL) --if-missing
	KCODE_TEST_MODEL="$$($(BIN)/kcode models show $(MODEL) | sed -n 's/^file  *//p')" \
		$(BIN)/python -m pytest -m "model or slow or gpu" --durations=10

check: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright --pythonpath $(BIN)/python

format: setup
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# Against llama.cpp, which is built into out/peers on first use; LLAMA=PYTHON names one that is installed, FULL=1 takes hours.
bench: setup
	$(BIN)/kcode models pull $(MODEL) --if-missing >&2
	@$(BIN)/python backend/bench/summary.py "$$($(BIN)/kcode models show $(MODEL) | sed -n 's/^file  *//p')" \
		$(if $(FULL),--full) $(if $(LLAMA),--llama $(LLAMA)) $(if $(IK),--ik $(IK))

bench-kernels: setup
	$(BIN)/python backend/bench/op_linear.py

# One layer of Kimi K2's experts against kt-kernel, which is installed into out/peers on first use; KT=FOLDER names an installed one.
bench-moe: setup
	@$(BIN)/python backend/bench/bench_moe.py $(if $(KT),--kt $(KT))

bench-bugs: setup
	$(BIN)/kcode models pull $(MODEL) --if-missing >&2
	@$(BIN)/python -m kcode_bench.small_bugs --split $(SPLIT) --limit $(LIMIT) --model $(MODEL)

# mini-swe-agent on the same bugs with the same model in kcode's engine; it is installed into out/peers/mini on first use.
bench-mini: setup
	$(BIN)/kcode models pull $(MODEL) --if-missing >&2
	test -x out/peers/mini/bin/mini || { $(BIN)/python -m venv out/peers/mini && out/peers/mini/bin/pip install -q "mini-swe-agent==2.4.6" mcp; } >&2
	@$(BIN)/python -m kcode_bench.bug_peer --python out/peers/mini/bin/python --split $(SPLIT) --limit $(LIMIT) --model $(MODEL) \
		--config $(MINI_CONFIG) --out out/mini-swe-agent/$(MINI_CONFIG)

# Attacks behind the walls, legitimate work behind them, and what the walls cost.
bench-sandbox: setup
	@$(BIN)/python -m kcode_bench.sandbox_bench

# The edit ladder on some 1,650 edits with known outcomes.
bench-edits: setup
	@$(BIN)/python -m kcode_bench.edits

# A session of 300 calls, killed at KILLS random points and resumed each time.
soak: setup
	@$(BIN)/python -m kcode_bench.soak --kills $(KILLS)

# The terminal interface as a terminal sees it, with a conversation of 300 calls; BUSY=1 beside a process that uses one core.
bench-tui: setup
	@$(BIN)/python -m kcode_bench.tui_bench $(if $(BUSY),--busy)

clean:
	rm -rf $(VENV) out build dist .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# Each target makes .venv itself on a fresh checkout. PYTHON=... chooses the interpreter (3.10 to 3.12).
PYTHON ?=
export PATH := $(CURDIR)/.venv/bin:$(PATH)

.PHONY: demo test check soak bench clean

demo: .venv/installed ## the whole story on a CPU: results in runs/demo
	@bash examples/demo/demo.sh runs/demo

test: .venv/installed ## every test, as CI runs them
	python -m pytest

check: .venv/installed ## ruff, mypy and the house rules
	ruff check .
	ruff format --check .
	mypy
	python -m pytest -q tests/test_house.py

CASES ?= test
SOAKED := $(foreach room,parity exact_resume another_world kills many_hosts host_faults,tests/colossal_llama/test_$(room).py)
soak: .venv/installed ## parity, resumes, kills and hosts, into docs/{parity,exact_resume,kills,many_hosts}.md; CASES="3d and bf16" for a part
	python -m pytest -m soak -k "$(CASES)" $(SOAKED)

bench: .venv/installed ## ratios measured side by side
	python benchmarks/data_engine.py --directory runs/bench
	python benchmarks/training.py
	python benchmarks/saving.py

.venv/installed: pyproject.toml constraints.txt scripts/make_venv.sh
	@PYTHON="$(PYTHON)" sh scripts/make_venv.sh

clean: ## remove what make has made
	rm -rf .venv runs

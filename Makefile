# Two commands need nothing but Python and make: `make benchmark` and `make test`. Either sets up .venv, once.

PYTHON ?= python3
TESTLIST ?= benchmarks/samples/quickstart.txt
OUTPUT ?= quickstart.csv
ARGS ?=
PYTEST_ARGS ?=

VENV := .venv
BIN := $(VENV)/bin
.DEFAULT_GOAL := help
.NOTPARALLEL:  # one .venv: two installs must not meet in it

.PHONY: help benchmark test lint format bench-harness clean

help:  ## Show the targets and the variables
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-15s %s\n", $$1, $$2}' $(firstword $(MAKEFILE_LIST))
	@echo
	@echo "  Variables: PYTHON; TESTLIST, OUTPUT and ARGS of benchmark; PYTEST_ARGS of test. For example:"
	@echo "  make benchmark TESTLIST=mine.txt OUTPUT=mine.csv ARGS='-vv --num_iters 100'"

benchmark: environment  ## Benchmark and check small cases of every family on the device that is here
	@$(BIN)/python benchmarks/flashinfer_benchmark.py --testlist $(TESTLIST) --refcheck --output_path $(OUTPUT) $(ARGS)

test: $(VENV)/.installed-test  ## Run the tests that need no GPU
	@$(BIN)/python -m pytest -m "not gpu" -n auto $(PYTEST_ARGS)

lint: $(VENV)/.installed-test  ## Check style, format and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(VENV)/.installed-test  ## Mend style and format in place
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench-harness: environment  ## Measure the harness itself: start-up, planning, its own cost per case
	@$(BIN)/python benchmarks/bench_harness.py $(ARGS)

clean:  ## Remove .venv, caches and build products; results stay
	rm -rf $(VENV) build dist .hypothesis .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# ---- The set-up of .venv ----
# Three kinds of install, each with a stamp, which stands for the smaller ones too: cpu < gpu < test.

EXTRAS_gpu := [flashinfer]
EXTRAS_test := [dev,flashinfer,mpi]
STAMPS_cpu := cpu
STAMPS_gpu := cpu gpu
STAMPS_test := cpu gpu test

# FlashInfer where there is a GPU to run it on. Expanded late, so that only a target that needs it asks nvidia-smi.
.SECONDEXPANSION:
.PHONY: environment
environment: $(VENV)/.installed-$$(shell nvidia-smi -L >/dev/null 2>&1 && echo gpu || echo cpu)

# While pip works, .complete is called .incomplete (and keeps its date): a .venv in which pip was cut short is never
# taken for a whole one, the next run makes it anew.
$(VENV)/.installed-%: export CONSTRAINTS = $(CONSTRAINTS_PY)
$(VENV)/.installed-%: pyproject.toml constraints.txt $(VENV)/.complete
	@echo "Installing flashinfer-perf$(EXTRAS_$*) into $(VENV) ..."
	@mv $(VENV)/.complete $(VENV)/.incomplete
	@rm -f $(VENV)/.installed-*
	@$(BIN)/python -c "$$CONSTRAINTS" > $(VENV)/constraints.txt
	@$(BIN)/python -m pip install --no-input --disable-pip-version-check --progress-bar off \
	  -c $(VENV)/constraints.txt -e '.$(EXTRAS_$*)' > $(VENV)/pip.log 2>&1 || { \
	  tail -n 20 $(VENV)/pip.log >&2; echo "The installation failed. All that pip said: $(VENV)/pip.log" >&2; exit 1; }
	@mv $(VENV)/.incomplete $(VENV)/.complete
	@touch $(addprefix $(VENV)/.installed-,$(STAMPS_$*))

# Is there a .venv whose Python runs, that was made in this folder (its scripts hold absolute paths), and with the
# PYTHON that was asked for, if one was?
venv_is_usable := $(shell test -x $(BIN)/python && grep -qsF '$(CURDIR)/$(VENV)' $(BIN)/activate \
  && { [ '$(origin PYTHON)' = file ] || [ "$$($(PYTHON) -V 2>/dev/null)" = "$$($(BIN)/python -V)" ]; } && echo yes)

.PHONY: always
always:

$(VENV)/.complete: export SYSTEM_TORCH = $(SYSTEM_TORCH_PY)
$(VENV)/.complete: export PARENT = $(PARENT_PY)
$(VENV)/.complete: $(if $(venv_is_usable),,always)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null || { \
	  echo "Python 3.10 or newer is needed, and $(PYTHON) is $$($(PYTHON) -V 2>/dev/null || echo not to be found)." \
	    "Name one, for example: make test PYTHON=python3.12" >&2; \
	  exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { \
	  echo "$(PYTHON) cannot make virtual environments. On Debian and Ubuntu: apt-get install python3-venv" >&2; exit 1; }
	@test ! -d $(VENV) || test -e $(VENV)/.complete || test -e $(VENV)/.incomplete || { \
	  echo "$(VENV) was not made by make. Move it away, or remove it with: make clean" >&2; exit 1; }
	@echo "Setting up $(VENV) (first run only, takes a few minutes) ..."
	@mkdir -p $(VENV) && touch $(VENV)/.incomplete
	@find $(VENV)/ -mindepth 1 -maxdepth 1 ! -name .incomplete -exec rm -rf {} +
	@if $(PYTHON) -c "$$SYSTEM_TORCH" >/dev/null 2>&1; then \
	  echo "$(PYTHON) has a PyTorch of its own, which is used and not replaced."; \
	  $(PYTHON) -m venv --system-site-packages $(VENV); \
	  $(PYTHON) -c "$$PARENT" > "$$($(BIN)/python -c 'import site; print(site.getsitepackages()[0])')/parent.pth"; \
	else $(PYTHON) -m venv $(VENV); fi
	@mv $(VENV)/.incomplete $@

# Succeeds where PYTHON has a torch that works and is new enough (vendor images, a Python environment of the user's).
define SYSTEM_TORCH_PY
import re, sys, torch
from importlib.metadata import version
sys.exit([int(n) for n in re.findall("[0-9]+", version("torch"))[:2]] < [2, 9])
endef

# If PYTHON is itself of a virtual environment, --system-site-packages shows what lies below that one, not what is in
# it: a .pth file adds it.
define PARENT_PY
import site, sys
for folder in site.getsitepackages() if sys.prefix != sys.base_prefix else ():
    print(f"import site; site.addsitedir({folder!r})")
endef

# constraints.txt for this .venv. Where it sees packages of the machine (only with a torch there), those stay as they
# are: they lose their pins, and torch and numpy, which belong together, are pinned to what is there.
define CONSTRAINTS_PY
import re, sys
from importlib.metadata import distributions
name_of = lambda text: re.sub("[-_.]+", "-", re.match("[A-Za-z0-9._-]*", text)[0]).lower()
every = reversed(list(distributions()))  # of two with the same name the first is the one that is imported
seen = {name_of(d.name or ""): d for d in every if not str(d.locate_file("")).startswith(sys.prefix)}
print(*(line for line in open("constraints.txt") if name_of(line) not in seen), sep="", end="")
print(*(f"{name}=={seen[name].version}" for name in ("torch", "numpy") if name in seen), sep="\n")
endef

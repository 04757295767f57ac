# Every target creates .venv and installs into it once, at the versions of constraints.txt.
# `PYTHON=python3 make -e TARGET` uses that interpreter as it is instead and installs nothing.
VENV := .venv
PYTHON := $(VENV)/bin/python
JOBS := 2
RESULTS :=
RUN :=
BENCH_JSON := .benchmarks/latest.json
RUNS := 1
BENCH_ARGS :=
GPU_ARGS :=
TRAFFIC_ARGS :=
COMPILE_ARGS :=
DEMO_ARGS :=
# As an old processor computes; empty, or ATEN_CPU_CAPABILITY=avx2, for another. Inductor's cache on
# disk does not tell capabilities apart: it would hand out code of the native one.
CAPPED := ATEN_CPU_CAPABILITY=default MKL_ENABLE_INSTRUCTIONS=SSE4_2 ONEDNN_MAX_CPU_ISA=SSE41
THREADS := 1
SEED := 1
TESTS := tests tests/compatibility

.DEFAULT_GOAL := help
.PHONY: help docs demo test elsewhere compatibility lint compile-check traffic communication bench bench-compare gpu report clean given-python

ifeq ($(origin PYTHON),file)
READY := $(VENV)/.installed
else
READY := given-python
override PYTHONPATH := $(CURDIR)$(if $(PYTHONPATH),:$(PYTHONPATH))
export PYTHONPATH
endif

# The build environment obeys these constraints too: an unpinned torch brings gigabytes of CUDA.
override PIP_CONSTRAINT := constraints.txt
export PIP_CONSTRAINT
# Triton reads it at import, so only the recipe that wants the interpreter may set it.
unexport TRITON_INTERPRET

PYTEST := $(PYTHON) -m pytest
# Two workers with one thread each are faster on two cores than two that fight for both.
PYTEST_PARALLEL := OMP_NUM_THREADS=1 $(PYTEST) -n $(JOBS)
# A warning must not count as a variant's failure there.
PYTEST_BENCH := mkdir -p $(dir $(BENCH_JSON)) && $(PYTEST) -W default --benchmark-only \
  --benchmark-quiet --benchmark-json=$(BENCH_JSON)

help:  ## this list
	@echo 'snorm_triton: make TARGET, where TARGET is'
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  %-14s %s\n", $$1, $$2 }' Makefile
	@echo 'PYTHON=python3 make -e TARGET uses that interpreter instead of $(VENV).'

demo: $(READY)  ## train a small SN-ResNet GAN on handwritten digits and draw what it learns
	$(PYTHON) -m snorm_triton demo $(DEMO_ARGS)

test: $(READY)  ## the CPU tests, which write docs/compatibility.md, then the kernels under Triton's interpreter
	$(PYTEST_PARALLEL) tests tests/compatibility --compatibility=docs/compatibility.md
	TRITON_INTERPRET=1 $(PYTEST_PARALLEL) -m interpreted

elsewhere: $(READY)  ## the CPU tests as other machines run them: CAPPED=, THREADS=, SEED= of the order, TESTS=
	$(CAPPED) TORCHINDUCTOR_FX_GRAPH_CACHE=0 OMP_NUM_THREADS=$(THREADS) $(PYTEST) -n $(JOBS) -p randomly --randomly-seed=$(SEED) $(TESTS)

compatibility: $(READY)  ## docs/compatibility.md alone, by the tests that it names
	$(PYTEST_PARALLEL) tests/compatibility --compatibility=docs/compatibility.md

lint: $(READY)  ## ruff check, ruff format --check, mypy
	$(PYTHON) -m ruff check .
	$(PYTHON) -m ruff format --check .
	$(PYTHON) -m mypy snorm_triton

docs: $(READY)  ## the site, into site/; a warning is an error
	NO_MKDOCS_2_WARNING=1 $(PYTHON) -m mkdocs build --strict --quiet

compile-check: $(READY)  ## cross-compile every kernel, without a GPU; fails on a spill in a loop or a narrow load
	$(PYTHON) tests/compile_only/compile_check.py $(COMPILE_ARGS)

traffic: $(READY)  ## the bytes that every kernel moves for the layers of the benchmarks, without a GPU
	$(PYTHON) -m bench.traffic $(TRAFFIC_ARGS)

communication: $(READY)  ## what the normalization of a sharded weight sends, into docs/distributed.md
	$(PYTHON) -m bench.communication docs/distributed.md

bench: $(READY)  ## ours beside torch's spectral norms and a copy, on the device at hand; RUNS=3: medians of 3 runs
	for run in $$(seq $(RUNS)); do \
	  $(subst latest,run-$$run,$(PYTEST_BENCH)) bench $(BENCH_ARGS) || exit; done
	@$(PYTHON) -m bench.report $(foreach run,$(shell seq $(RUNS)),$(subst latest,run-$(run),$(BENCH_JSON))) \
	  $(if $(RESULTS),--results $(RESULTS))

bench-compare: $(READY)  ## fail where ours became slower than the committed result of this device has it
	$(if $(RUN),,$(PYTEST_BENCH) --recorded --no-compiled bench/bench_access.py::bench_layer $(BENCH_ARGS))
	@$(PYTHON) -m bench.compare $(or $(RUN),$(BENCH_JSON))

gpu: $(READY)  ## tests, benchmarks and checks on a GPU; all that they find into RESULTS, a folder
	@$(PYTHON) -m bench.gpu $(or $(RESULTS),.benchmarks/gpu) $(GPU_ARGS)

report: $(READY)  ## what make gpu saved in RESULTS, into bench/results; needs no GPU
	@$(PYTHON) -m bench.report $(or $(RESULTS),.benchmarks/gpu) --results bench/results

clean:  ## remove .venv, builds and caches
	rm -rf $(VENV) build dist site *.egg-info .benchmarks .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(VENV)/.installed: pyproject.toml constraints.txt
	@test -x $(VENV)/bin/python || { \
	  for base in python3.11 python3; do \
	    if $$base -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then \
	      echo "creating $(VENV) with $$base"; exec $$base -m venv --clear $(VENV); \
	    fi; \
	  done; \
	  echo 'snorm_triton needs Python 3.11 or newer: neither python3.11 nor python3 is that.' >&2; \
	  exit 1; }
	$(VENV)/bin/python -m pip install --editable '.[demo,test,dev,docs]'
	@touch $@

given-python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and \
	  "snorm_triton needs Python 3.11 or newer: $(PYTHON) is %d.%d." % sys.version_info[:2])'

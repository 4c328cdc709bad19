# make demo: set up, install, train a sparse WRN-28-2 on the embedded data in about two minutes
# make test: set up, install, run every test
# make examples: an environment with the frameworks of examples/, then every script there on tiny data
#   and the other tests that need one of these packages
# make bench: measure this machine, sparse against dense: build/bench-kept.json, pictures, tables
# make bench-blocks: layers with weights in blocks of output channels: build/blocks.json, a table
# make cuda-table: what the compiled GPU kernels take, written into docs/cuda.md
# make cuda-model: what the cost model expects of them on GPUs that are not here, written there too
# make bench-distributed: 1, 2 and 4 processes that train together: build/distributed.json, tables
# make distributed-table: what the kept JSONs of that say, written into docs/distributed.md
# make distributed-model: what a step is expected to take on many GPUs, written into docs/distributed.md
# make gpu-tables: what the kept JSON of an H200 says, written into docs/measured.md and docs/cuda.md
# make bench-models: whole models alone, ours beside every dense rival: build/models.json, tables
# make cpu-tables: what the kept JSON of a CPU says, written into docs/measured.md
# make model-tables: what the kept JSONs of whole models say, written into docs/performance.md
# make blocks-table: what the kept JSONs of blocks say, written into docs/performance.md
# make blocks-picture: what they cost in accuracy, beside their steps, drawn for docs/experiments.md
# make readme-table: the few lines of both that README.md shows, written there
# make test-gpu, make test-gpu-sanitizer: the tests that need a GPU; a few of them under compute-sanitizer
# make bench-gpu: measure this machine's GPU: build/bench-gpu.json, tables
# make nightly: the emulated GPU kernels under the sanitizers, also where that takes too long for each change
# make docs: the site, from docs/: build/site
# make tutorial: runs docs/tutorial.ipynb anew, on Fashion-MNIST
# make lint: the style checks of continuous integration

PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
STAMP = $(VENV)/.installed
DOCS_STAMP = $(VENV)/.docs-installed
export PATH := $(abspath $(BIN)):$(PATH)
SOURCES = pyproject.toml setup.py CMakeLists.txt constraints.txt $(shell find csrc -type f)
# What was measured and kept.
CPU_RESULTS = benchmarks/results/xeon-avx512-2cores.json
GPU_RESULTS = benchmarks/results/h200.json
MODEL_RESULTS = $(sort $(wildcard benchmarks/results/*-models.json))
BLOCK_RESULTS = $(sort $(wildcard benchmarks/results/*-blocks.json))
HOST_RESULTS = $(sort $(wildcard benchmarks/results/*-host.json))
DISTRIBUTED_RESULTS = $(sort $(wildcard benchmarks/results/*-distributed.json))
# Of these machines the one whose dense is hardest to beat: README shows that.
README_MODELS = benchmarks/results/xeon-amx-2cores-models.json
# How the GPU kernels are built, from the environment: with other options everything is installed again.
OPTIONS = DSR_CUDA=$(DSR_CUDA) DSR_CUDA_ARCHITECTURES=$(DSR_CUDA_ARCHITECTURES) CUDACXX=$(CUDACXX)

.PHONY: demo test examples lint bench bench-models bench-blocks bench-host cuda-table cuda-model gpu-tables cpu-tables \
  bench-distributed distributed-table distributed-model \
  model-tables blocks-table blocks-picture host-table readme-table \
  test-gpu test-gpu-sanitizer bench-gpu nightly docs tutorial clean
ifneq ($(shell cat $(VENV)/.options 2>/dev/null),$(OPTIONS))
.PHONY: $(STAMP)
endif

demo: $(STAMP)
	$(BIN)/dsr train --recipe wrn28_2-digits --out runs/demo-$(shell date +%Y%m%d-%H%M%S)

test: $(STAMP)
	$(BIN)/python -m pytest

# torchvision and timm want another torch than the tests have, so it is an environment of its own.
examples: $(STAMP)
	test -x .venv-examples/bin/python || $(BIN)/python -m venv .venv-examples
	.venv-examples/bin/pip install --quiet --requirement examples/requirements.txt
	PYTHONPATH=$(CURDIR) .venv-examples/bin/python -m pytest tests/examples tests/integrations \
	  tests/nn/test_fx.py tests/nn/test_onnx_export.py tests/rewiring/test_torchvision.py

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/check-jsonschema --builtin-schema vendor.github-workflows .github/workflows/*.yml
	$(BIN)/clang-format --dry-run --Werror $(shell find csrc tests -name '*.h' -o -name '*.cpp' -o -name '*.cu' -o -name '*.cuh')

cuda-table: $(STAMP)
	PYTHONPATH=tests $(BIN)/python -m cuda_static.table docs/cuda.md

cuda-model: $(STAMP)
	PYTHONPATH=benchmarks:tests $(BIN)/python -m on_gpu.model docs/cuda.md
	PYTHONPATH=benchmarks:tests $(BIN)/python -m on_gpu.windows benchmarks/results/h200.json docs/cuda.md

distributed-table: $(STAMP)
	PYTHONPATH=. $(BIN)/python benchmarks/distributed_table.py $(DISTRIBUTED_RESULTS) docs/distributed.md

distributed-model: $(STAMP)
	$(BIN)/python benchmarks/distributed_model.py $(GPU_RESULTS) docs/distributed.md

gpu-tables: $(STAMP)
	PYTHONPATH=benchmarks $(BIN)/python -m on_gpu.measured $(GPU_RESULTS) docs/measured.md docs/cuda.md

cpu-tables: $(STAMP)
	$(BIN)/python benchmarks/cpu_tables.py $(CPU_RESULTS) $(CPU_RESULTS:.json=-avx2.json) docs/measured.md

model-tables: $(STAMP)
	$(BIN)/python benchmarks/model_tables.py $(MODEL_RESULTS) docs/performance.md

blocks-table: $(STAMP)
	$(BIN)/python benchmarks/blocks_table.py $(BLOCK_RESULTS) docs/performance.md

host-table: $(STAMP)
	$(BIN)/python benchmarks/host_table.py $(HOST_RESULTS) docs/performance.md

blocks-picture: $(STAMP)
	PYTHONPATH=.:benchmarks $(BIN)/python benchmarks/blocks_picture.py benchmarks/results/epyc-zen4-2cores-blocks.json \
	  docs/experiments/blocks-short/results.csv docs/experiments/blocks-short/cost.png

readme-table: $(STAMP)
	$(BIN)/python benchmarks/readme_table.py $(CPU_RESULTS) $(GPU_RESULTS) $(README_MODELS) README.md

# Memory stays with the process for both sides: glibc maps blocks of 32 MB and more afresh whatever
# its threshold says, and so would charge dense and sparse for page faults on every large output.
KEEP_FREED = MALLOC_TRIM_THRESHOLD_=17179869184 MALLOC_MMAP_MAX_=0

bench: $(STAMP)
	mkdir -p build
	$(KEEP_FREED) $(BIN)/python -m pytest benchmarks/bench_*.py --benchmark-json=build/bench.json
	$(BIN)/python benchmarks/summarize.py build/bench.json build/bench-kept.json
	$(BIN)/python benchmarks/plots.py build/bench-kept.json build/bench-plots

# MODELS names what to measure and how, as in make bench-models MODELS='-k WRN --rounds 15'.
bench-models: $(STAMP)
	$(KEEP_FREED) $(BIN)/python benchmarks/measure_models.py build/models.json $(MODELS)

# BLOCKS names what to measure and how, as in make bench-blocks BLOCKS='-k WRN --rounds 5'.
bench-blocks: $(STAMP)
	$(KEEP_FREED) $(BIN)/python benchmarks/measure_blocks.py build/blocks.json $(BLOCKS)

# PROCESSES names what to measure and how, as in make bench-distributed PROCESSES='--processes 2'.
bench-distributed: $(STAMP)
	$(KEEP_FREED) PYTHONPATH=. $(BIN)/python benchmarks/bench_distributed.py build/distributed.json $(PROCESSES)

bench-host: $(STAMP)
	PYTHONPATH=.:tests $(BIN)/python benchmarks/measure_host.py build/host.json

# $(call on_gpu,ARGUMENTS): Python with these. Nothing is installed over a Python that has torch with CUDA already.
define on_gpu
@if $(PYTHON) -c 'import torch; assert torch.version.cuda' 2>/dev/null; then \
  python=$(PYTHON); \
  PYTHONPATH=$(CURDIR) $(PYTHON) -c 'import dsr_kernels, pytest' 2>/dev/null || \
  { echo 'this runs in the source tree, which is not built for $(PYTHON): first $(PYTHON) -m pip install --editable ".[dev]"'; exit 1; }; \
else $(MAKE) $(STAMP) && python=$(BIN)/python; fi && PYTHONPATH=$(CURDIR) $$python $(1)
endef

test-gpu:
	$(call on_gpu,-m pytest tests/gpu -m gpu)

test-gpu-sanitizer:
	$(call on_gpu,tests/gpu/sanitize.py)

bench-gpu:
	$(call on_gpu,benchmarks/measure_gpu.py build/bench-gpu.json)

# Bounds and undefined behaviour on every shape, then races on the small ones; the planted defects under each.
EMULATED = $(BIN)/python tests/helpers/cuda_emulated.py
WINDOW_TESTS = $(sort $(wildcard tests/csrc/test_cuda_window_*.py))
nightly: $(STAMP)
	$(BIN)/python -m pytest -q tests/csrc/test_cuda_emulator.py
	$(EMULATED) address build/emulated-address -m pytest -q --capture=sys tests/csrc/test_cuda_conv.py $(WINDOW_TESTS)
	$(EMULATED) thread build/emulated-thread -m pytest -q --capture=sys $(WINDOW_TESTS) tests/csrc/test_cuda_conv.py \
	  -k "small or no_images or (linear and shape1)"

# The variable silences the theme's notice about other site generators.
docs: $(DOCS_STAMP)
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet --strict

tutorial: $(DOCS_STAMP)
	$(BIN)/python website/notebook.py docs/tutorial.ipynb

# The package is there already; this adds what its extra [docs] names.
$(DOCS_STAMP): $(STAMP)
	$(BIN)/pip install --quiet --constraint constraints.txt "dsr_kernels[docs]"
	touch $@

$(STAMP): $(SOURCES)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || \
	  { echo "dsr_kernels needs Python 3.10 or newer; name one with: make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 1; }
	@$(PYTHON) -c 'import ensurepip' 2>/dev/null || \
	  { echo "$(PYTHON) cannot make virtual environments; on Debian and Ubuntu: apt install python3-venv"; exit 1; }
	@$(PYTHON) -c 'import os, sysconfig as s; assert os.path.exists(s.get_path("include") + "/Python.h")' 2>/dev/null || \
	  { echo "the headers of $(PYTHON) are missing; on Debian and Ubuntu: apt install python3-dev"; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --constraint constraints.txt torch
	$(BIN)/pip install --quiet --constraint constraints.txt --editable ".[dev]"
	echo '$(OPTIONS)' >$(VENV)/.options
	touch $@

clean:
	rm -rf $(VENV) .venv-examples build dsr_kernels/_*.so *.egg-info

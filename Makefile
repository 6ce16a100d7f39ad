# Two commands do all: `make serve` serves the default model, `make test` checks everything.
PYTHON ?= python3
VENV   := .venv
CLIENTS := .venv-clients
RUNTIMES := .venv-runtimes
TRITON := .venv-triton
BIN    := $(VENV)/bin
MODEL  ?= smollm2:135m
HOST   ?= 127.0.0.1
PORT   ?= 8000

LINUX        := $(filter Linux,$(shell uname))
NATIVE       := $(wildcard native/*.cpp native/*.h)
TIDIED       := $(patsubst native/%.cpp,build/tidy/%,$(wildcard native/*.cpp))
TIDY_ISA     := $(if $(filter x86_64,$(shell uname -m)),-DOCTAVO_X86 -DOCTAVO_ISA=avx2 -mavx2 -mfma -mf16c,-DOCTAVO_ISA=portable)
KERNEL_TESTS := $(addprefix tests/backends/,test_kernels.py test_fusion.py test_native_attention.py test_native_sampling.py)

# Half of the tests wait for processes that they start: others run meanwhile. Without bytecode on the disk each of those
# would compile all that it imports again.
PYTEST := PYTHONDONTWRITEBYTECODE= PYTHONHASHSEED=0 $(BIN)/python -m pytest -n logical --maxprocesses 4 --dist worksteal

# Of `make fuzz`: SEED repeats a run, FACTOR is how many times the examples of `make test` are tried.
SEED   := $(or $(SEED),$(shell od -An -N4 -tu4 /dev/urandom | tr -d ' '))
FACTOR ?= 20

# What takes one core does so beside something else. Within a make that is parallel already its jobs are shared.
JOBS      = $(if $(findstring jobserver,$(MAKEFLAGS)),,-j$(shell getconf _NPROCESSORS_ONLN))
PARALLEL  = $(MAKE) --no-print-directory $(JOBS) $(if $(filter output-sync,$(.FEATURES)),--output-sync=target)

# What reads model files.
EXTRAS := onnx torch tensorflow tflite openvino transformers sklearn xgboost lightgbm

.PHONY: serve test checks lint tidy types check-imports unit spare fuzz clients runtimes triton docs protos sanitize format clean

serve: $(VENV)/.installed
	$(BIN)/octavo serve $(MODEL) --host $(HOST) --port $(PORT)

# The sanitizers compute without a pause: they have the cores while the tests wait.
test: checks
	+@$(MAKE) --no-print-directory $(if $(findstring jobserver,$(MAKEFLAGS)),,-j2) unit $(if $(LINUX),spare)

checks: $(VENV)/.installed-test
	+@$(PARALLEL) types lint check-imports

spare:
	+@nice $(PARALLEL) sanitize

lint: $(VENV)/.installed-test $(if $(LINUX),tidy)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/clang-format --dry-run --Werror $(NATIVE)

tidy:
	+@$(PARALLEL) --silent $(TIDIED)

# The kernels as one instruction set has them. What did not change since it was clean is not looked at again.
build/tidy/%: native/%.cpp $(wildcard native/*.h) .clang-tidy | $(VENV)/.installed-test
	@mkdir -p $(@D)
	@echo clang-tidy $<
	@$(BIN)/clang-tidy --quiet $< -- -std=c++20 $(TIDY_ISA) $$($(BIN)/python -c \
		'import nanobind, sysconfig; print("-isystem", sysconfig.get_path("include"), "-isystem", nanobind.include_dir())')
	@touch $@

types: $(VENV)/.installed-test
	$(BIN)/mypy

check-imports: $(VENV)/.installed-test
	$(BIN)/lint-imports

# The same examples, hashes and random numbers at every run.
unit: $(VENV)/.installed-test
	$(PYTEST)

# The property tests and fuzzers on other examples at every run, and on more of them.
fuzz: $(VENV)/.installed-test
	@echo "make fuzz SEED=$(SEED) FACTOR=$(FACTOR)"
	OCTAVO_FUZZ=$(FACTOR) $(PYTEST) -m hypothesis --timeout=0 --hypothesis-seed=$(SEED) || \
		{ echo "to repeat: make fuzz SEED=$(SEED) FACTOR=$(FACTOR)"; exit 1; }

# What people write agents and pipelines with, in an environment of its own, against a server of the default model.
clients: $(VENV)/.installed-test $(CLIENTS)/.installed
	OCTAVO=$(abspath $(BIN))/octavo $(CLIENTS)/bin/python -m pytest tests/clients -c tests/clients/pytest.ini --confcutdir=tests/clients

# torch by pip, as it is set up to find it; the rest by uv, which is faster.
$(CLIENTS)/.installed: tests/clients/requirements.txt
	$(PYTHON) -m venv $(CLIENTS)
	$(CLIENTS)/bin/pip install --quiet uv "$$(grep ^torch tests/clients/requirements.txt)"
	$(CLIENTS)/bin/uv pip install --quiet --python $(CLIENTS)/bin/python --requirement tests/clients/requirements.txt
	@touch $@

# The same repository served by the real Triton, from the one wheel that brings it, which needs Linux with glibc 2.35.
triton: $(VENV)/.installed-test $(TRITON)/.installed
	OCTAVO_TRITON=$(abspath $(TRITON)) $(BIN)/python -m pytest tests/triton

$(TRITON)/.installed: tests/triton/requirements.txt
	$(PYTHON) -m venv $(TRITON)
	$(TRITON)/bin/pip install --quiet --requirement tests/triton/requirements.txt
	@touch $@

# The loaders of model files, each with the library that reads them, in an environment of its own.
runtimes: $(RUNTIMES)/.installed
	OCTAVO_RUNTIMES=1 PYTHONPATH=src $(RUNTIMES)/bin/python -m pytest tests/hosting/runtimes --confcutdir=tests/hosting/runtimes

# torch by pip, as it is set up to find it; the rest by uv, which is faster.
$(RUNTIMES)/.installed: tests/hosting/runtimes/requirements.txt pyproject.toml
	$(PYTHON) -m venv $(RUNTIMES)
	$(RUNTIMES)/bin/pip install --quiet uv "$$(grep ^torch tests/hosting/runtimes/requirements.txt)"
	$(RUNTIMES)/bin/uv pip install --quiet --python $(RUNTIMES)/bin/python --requirement tests/hosting/runtimes/requirements.txt \
		--requirement pyproject.toml $(EXTRAS:%=--extra %)
	@touch $@

docs: $(VENV)/.installed-test
	$(BIN)/python -m tests.api_document >docs/api.md
	$(BIN)/python -m tests.python_document >docs/python.md

# All messages, described in one file that every version of protobuf reads.
PROTOS := src/octavo/protos

protos: $(VENV)/.installed-test
	$(BIN)/python -m grpc_tools.protoc -I$(PROTOS) --include_imports --descriptor_set_out=$(PROTOS)/compiled.binpb \
		inference.proto health.proto reflection.proto

# The native kernels once more, with address and undefined-behaviour sanitizers, over shapes at random.
sanitize: build/sanitize/.built
	OCTAVO_NATIVE=build/sanitize LD_PRELOAD="$$($(CXX) -print-file-name=libasan.so) $$($(CXX) -print-file-name=libubsan.so)" \
		ASAN_OPTIONS=detect_leaks=0 UBSAN_OPTIONS=print_stacktrace=1 \
		$(PYTEST) $(KERNEL_TESTS)

build/sanitize/.built: $(wildcard native/*) | $(VENV)/.installed-test
	@mkdir -p build
	$(BIN)/cmake -S native -B build/sanitize -G Ninja -DOCTAVO_SANITIZE=ON -DOCTAVO_EVERY_MACHINE=OFF -DCMAKE_CXX_COMPILER=$(CXX) \
		-DCMAKE_MAKE_PROGRAM=$(abspath $(BIN))/ninja -DPython_EXECUTABLE=$(abspath $(BIN))/python >build/sanitize.log
	MAKEFLAGS= $(BIN)/cmake --build build/sanitize >>build/sanitize.log || { cat build/sanitize.log; exit 1; }
	@touch $@

format: $(VENV)/.installed-test
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $(NATIVE)

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "Octavo needs Python 3.11 or newer; $(PYTHON) is $$($(PYTHON) -V). Try: make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 1; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: pyproject.toml $(wildcard native/*) | $(VENV)/bin/python
	@echo "installing Octavo into $(VENV), and compiling its kernels: this once, a minute or more"
	$(BIN)/python -m pip install --quiet --no-compile --editable .
	@touch $@

$(VENV)/.installed-test: pyproject.toml $(wildcard native/*) | $(VENV)/bin/python
	@echo "installing Octavo into $(VENV) with all that its tests need, and compiling its kernels: this once, minutes"
	+@$(PARALLEL) $(VENV)/.requirements $(VENV)/.kernels
	@touch $@ $(VENV)/.installed

$(VENV)/.requirements: pyproject.toml | $(VENV)/bin/python
	@$(BIN)/python -c 'import tomllib; project = tomllib.load(open("pyproject.toml", "rb"))["project"]; \
		print(*project["dependencies"], *project["optional-dependencies"]["test"], sep="\n")' >$@.txt
	$(BIN)/python -m pip install --quiet --no-compile --requirement $@.txt
	@touch $@

# The compiler runs as many jobs as there are cores by itself: it does not understand make's.
$(VENV)/.kernels: pyproject.toml $(wildcard native/*) | $(VENV)/bin/python
	MAKEFLAGS= $(BIN)/python -m pip install --quiet --no-compile --no-deps --editable . \
		--config-settings=cmake.define.OCTAVO_EVERY_MACHINE=ON
	@touch $@

clean:
	rm -rf $(VENV) $(CLIENTS) $(RUNTIMES) build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis

# make demo    a virtual environment, the build, then two real trainings
# make test    the same set-up, then all tests
# make gpu-peers    fetch the wheels of other kernels for a machine with a GPU, into out/peers
# make gpu-report OUT=dir    on a machine with a GPU, in at most MINUTES: build, check and measure
#
# PYTHON  the interpreter to begin with
# VENV    the virtual environment; "none" takes PYTHON as it is, installs nothing and builds in place
# TORCH   the torch to install, 2.11 to 2.15 (each in a VENV of its own); empty: the one PYTHON has
# PEERS   a folder of other kernels' packages, wheels or unpacked, that gpu-report measures beside ours

PYTHON ?= python3
# a GPU comes with a torch of its own
VENV ?= $(if $(filter gpu-report,$(MAKECMDGOALS)),none,.venv)
TORCH ?= torch==2.13.0
OUT ?= out/gpu
MINUTES ?= 9

CPP := $(wildcard csrc/*.h csrc/*.cpp csrc/*/*.h csrc/*/*.cpp csrc/*/*.cu csrc/*/*.cuh)
TEST_CPP := $(wildcard $(foreach folder,tests/cuda_on_host bench/progression,$(folder)/*.h $(folder)/*.c*))

ifeq ($(VENV),none)
    PY := $(PYTHON)
    STAMPS := build/stamps
    BUILD := $(PY) setup.py build_ext --inplace
else
    PY := $(abspath $(VENV))/bin/python
    STAMPS := $(VENV)/stamps
    # a file's tests stay in one process, for what they set up together; files in their order, since
    # those of cuda_on_host take the longest
    # by pytest-xdist, which PYTHON as it is may not have
    PROCESSES := -n 2 --dist loadfile --no-loadscope-reorder
    BUILD := $(PY) -m pip install --no-build-isolation --editable '.[test,demo,bench,lint]'
    export PATH := $(abspath $(VENV))/bin:$(PATH)# where the build looks for ninja
endif

.PHONY: demo test load-test bench gpu-peers gpu-report lint format venv build clean

demo: build
	$(PY) -m demo

test: build
	$(PY) -m pytest $(PROCESSES)

load-test: build
	$(PY) tests/load_matrix.py

bench: build
	for work in logits linear sigmoid small scaling linear-scaling training; do $(PY) -m bench $$work --device cpu || exit 1; done

gpu-peers: venv
	$(PY) -m bench.gpu_peers

gpu-report: venv
	$(PY) -m bench gpu-report --out $(OUT) --minutes $(MINUTES) $(if $(PEERS),--peers $(PEERS))

lint: build
	$(PY) -m ruff check
	$(PY) -m ruff format --check
	clang-format --dry-run -Werror $(CPP) $(TEST_CPP)

format: build
	$(PY) -m ruff check --fix
	$(PY) -m ruff format
	clang-format -i $(CPP) $(TEST_CPP)

venv: $(STAMPS)/venv
build: $(STAMPS)/build

$(STAMPS)/venv:
ifneq ($(VENV),none)
	$(PYTHON) -m venv $(if $(TORCH),,--system-site-packages) $(VENV)
	$(PY) -m pip install $(TORCH) ninja 'pybind11>=2.13' 'setuptools>=77,<82' wheel
endif
	mkdir -p $(STAMPS)
	touch $@

$(STAMPS)/build: $(STAMPS)/venv setup.py pyproject.toml $(CPP)
	$(BUILD)
	touch $@

clean:
	rm -rf build out *.egg-info torchce_cuda/*.so $(STAMPS)/build
	find . -name __pycache__ -prune -exec rm -rf {} +

# fedtide. `make demo` and `make test` install what they need, in .venv/, and run.
#
#   .venv/export   torch, onnxruntime-training where it exists: export, coordinator, demo, tools
#   .venv/device   what a device has: stock onnxruntime, no torch (and pytest)
#   .venv/ray      a machine that learns in a Ray cluster
#
# onnxruntime-training and onnxruntime share one import name, hence two environments.

PYTHON ?= python3
TORCH ?= torch==2.13.0
# The CPU build, where this index is reachable; any other source of that version does as well.
TORCH_INDEX ?= https://download.pytorch.org/whl/cpu

EXPORT := .venv/export
DEVICE := .venv/device
RAY := .venv/ray
PIP := -m pip --disable-pip-version-check install --quiet
export FEDTIDE_EXPORT_PYTHON := $(CURDIR)/$(EXPORT)/bin/python
export FEDTIDE_DEVICE_PYTHON := $(CURDIR)/$(DEVICE)/bin/python

.PHONY: demo test test-slow test-ray test-faults simulate-faults fuzz test-runtimes test-arm64 \
	test-systemd check wheel \
	bench bench-simulation bench-train-step repro repro-figure-1 clean mosquitto
.DELETE_ON_ERROR:

demo: $(EXPORT)/.ready $(DEVICE)/.ready
	$(EXPORT)/bin/fedtide demo $(DEMO_FLAGS)

# Each test runs in the environment that it is about; two at once, so torch takes one core.
test: $(EXPORT)/.ready $(DEVICE)/.ready mosquitto
	$(DEVICE)/bin/python -m pytest -q -m "not slow" -n 2 --ignore tests/end_to_end \
		--ignore tests/export --ignore tests/faults
	OMP_NUM_THREADS=1 $(EXPORT)/bin/python -m pytest -q -m "not slow" -n 2 tests/export
	$(EXPORT)/bin/python -m pytest -q -m "not slow" -n 2 --dist loadfile tests/contract \
		tests/end_to_end tests/faults

test-slow: $(EXPORT)/.ready $(DEVICE)/.ready mosquitto
	$(EXPORT)/bin/python -m pytest -q -m slow tests

# Every kill point, broker loss, full and failing disk, damaged file; writes results/faults.json.
test-faults: $(EXPORT)/.ready $(DEVICE)/.ready mosquitto
	FEDTIDE_SAVE_FAULTS=1 $(EXPORT)/bin/python -m pytest -q tests/faults

# A local Ray cluster of several nodes learns as one process does.
test-ray: $(EXPORT)/.ready $(RAY)/.ready
	$(RAY)/bin/python -m pytest -q tests/contract/test_ray.py tests/contract/test_workers.py

# Oldest and newest Python, onnxruntime and numpy, and onnxruntime-web; environments in build/.
test-runtimes: $(EXPORT)/.ready $(DEVICE)/.ready
	$(DEVICE)/bin/python -m tests.everywhere.runtimes

# Nearly right bytes for everything that reads any, for so many minutes: results/fuzz.json.
MINUTES ?= 60
fuzz: $(EXPORT)/.ready $(DEVICE)/.ready
	$(DEVICE)/bin/python -m tests.hostile.fuzz --minutes $(MINUTES) $(FUZZ_FLAGS)

# 64-bit Arm, emulated: trainers, and a device from installing to leaving. Needs debootstrap (as root, once), qemu-user-static and proot.
test-arm64: $(EXPORT)/.ready $(DEVICE)/.ready
	$(DEVICE)/bin/python -m tests.everywhere.arm64 $(ARM64_FLAGS)

# The federation under virtual time, with faults (docs/simulation.md): seeds FROM:TO, TO excluded.
SEEDS ?= 0:10000
simulate-faults: $(DEVICE)/.ready
	@$(DEVICE)/bin/python -m simulator --seeds $(SEEDS)

# The units under a real systemd, booted in a container. Needs root, debootstrap and systemd-container.
test-systemd: $(EXPORT)/.ready $(DEVICE)/.ready
	FEDTIDE_TEST_SYSTEMD=1 $(DEVICE)/bin/python -m pytest -q tests/services

check: $(EXPORT)/.ready
	$(EXPORT)/bin/ruff format --check .
	$(EXPORT)/bin/ruff check .
	$(EXPORT)/bin/mypy

# One file for pip and pipx: pipx install 'dist/fedtide-VERSION-py3-none-any.whl[client]'.
wheel:
	rm -rf build/lib build/bdist.*
	$(PYTHON) -m pip --disable-pip-version-check wheel --quiet --no-deps --wheel-dir dist .
	@ls -l dist/*.whl

bench: $(EXPORT)/.ready $(DEVICE)/.ready mosquitto
	$(EXPORT)/bin/python -m benchmarks.round_overhead
	$(EXPORT)/bin/python -m benchmarks.client_footprint
	$(EXPORT)/bin/python -m benchmarks.device_writes
	$(EXPORT)/bin/python -m benchmarks.model_fan_out
	$(EXPORT)/bin/python -m benchmarks.links --save
	$(EXPORT)/bin/python -m benchmarks.train_step
	$(EXPORT)/bin/python -m benchmarks.aggregation
	$(EXPORT)/bin/python -m benchmarks.coordinator_memory
	$(EXPORT)/bin/python -m benchmarks.backup_under_load
	$(EXPORT)/bin/python -m benchmarks.fleet_scale
	$(EXPORT)/bin/python -m benchmarks.seal
	$(EXPORT)/bin/python -m benchmarks.revocation

# fedtide simulate and, with FLOWER=PYTHON of an environment that has it, Flower's simulation engine;
# then the share of onnxruntime. They want MNIST: FEDTIDE_DATA, or fetched as docs/simulate.md says.
bench-simulation: $(EXPORT)/.ready
	$(EXPORT)/bin/python -m benchmarks.simulation_speed $(if $(FLOWER),--flower $(FLOWER))
	$(EXPORT)/bin/python -m benchmarks.simulation_share

# Twenty devices, kill -9 of everything now and then, for so many minutes: results/soak.json.
soak: $(EXPORT)/.ready mosquitto
	$(EXPORT)/bin/python -m benchmarks.soak --minutes $(MINUTES)

# Five models, batch 10, one thread: the last line is model -> portable time / torch time.
bench-train-step: $(EXPORT)/.ready $(DEVICE)/.ready
	@$(EXPORT)/bin/python -m benchmarks.train_step --short

# Figure 1 of the FedAvg paper (docs/fedavg-paper.md). The data: FEDTIDE_DATA, or REPRO_FLAGS=--download.
repro-figure-1: $(EXPORT)/.ready
	@$(EXPORT)/bin/fedtide repro fedavg --figure 1 $(REPRO_FLAGS)

# A table of it, all rows, for as long as it takes; goes on where it was stopped.
TABLE ?= 2
repro: $(EXPORT)/.ready
	@$(EXPORT)/bin/fedtide repro fedavg --table $(TABLE) $(REPRO_FLAGS)

mosquitto:
	@deploy/system_packages mosquitto

$(EXPORT)/.ready: pyproject.toml Makefile
	@deploy/system_packages venv $(PYTHON)
	$(PYTHON) -m venv $(EXPORT)
	$(EXPORT)/bin/python $(PIP) '$(TORCH)' --extra-index-url $(TORCH_INDEX) --timeout 20 --retries 1
	$(EXPORT)/bin/python $(PIP) --editable '.[export,demo,test,dev]'
	@touch $@

$(DEVICE)/.ready: pyproject.toml Makefile
	@deploy/system_packages venv $(PYTHON)
	$(PYTHON) -m venv $(DEVICE)
	$(DEVICE)/bin/python $(PIP) --editable '.[client,images,test]'
	@touch $@

$(RAY)/.ready: pyproject.toml Makefile
	@deploy/system_packages venv $(PYTHON)
	$(PYTHON) -m venv $(RAY)
	$(RAY)/bin/python $(PIP) --editable '.[simulate,client,ray,test]'
	@touch $@

clean:
	rm -rf .venv build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis

# The two commands that matter: `make run` and `make test`. `make help` lists the rest.

PYTHON := .venv/bin/python
ORCH := .venv/bin/orch
CONFIG ?= configs/quickstart.yaml
RESULTS ?= results

.PHONY: help setup run check test test-lab bench statistics clean

help:
	@echo 'make setup   install what is missing: Debian packages, .venv with this project'
	@echo 'make run     setup, then the default experiment: from the mail to the verdict'
	@echo '             (CONFIG=configs/quickstart.yaml RESULTS=results)'
	@echo 'make test    setup (with a browser), then every test, the ones with kernels and QEMU included'
	@echo 'make test-lab  the same for the tests with lab hosts in QEMU, also the ones too dear for make test'
	@echo 'make check   style, types, and the guest programs compiled with all warnings as errors'
	@echo 'make bench   setup, then how long each stage takes on this machine, and 100 million faults (4 GB of disk, minutes)'
	@echo 'make statistics   how often the verdicts err, on simulated targets: writes the table of docs/statistics.md (minutes)'
	@echo 'make clean   remove what make check and make test leave behind (results and caches stay)'

setup:
	@scripts/setup

run: setup
	@$(ORCH) run $(CONFIG) --results $(RESULTS)

test:
	@scripts/setup test
	@$(PYTHON) -m pytest

test-lab:
	@scripts/setup test
	@$(PYTHON) -m pytest tests/integration -m lab

check: setup
	@$(PYTHON) -m ruff check .
	@$(PYTHON) -m ruff format --check .
	@$(PYTHON) -m mypy
	@$(MAKE) --no-print-directory -C guests check

statistics: setup
	@$(PYTHON) -m benchmarks.errorrates --write docs/statistics.md

bench: setup
	@$(PYTHON) -c 'import hdrh' 2>/dev/null || $(PYTHON) -m pip install --quiet --disable-pip-version-check --root-user-action=ignore -e '.[bench]'
	@$(PYTHON) -m benchmarks

clean:
	@rm -rf .mypy_cache .ruff_cache .pytest_cache .hypothesis build guests/build

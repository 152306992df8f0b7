# `make` lists the targets. Every target sets up what it needs; only Python, pip and make are required.

VENV ?= .venv
BASELINES ?= .venv-baselines
LOWEST ?= .venv-lowest
ARGS ?=
JOBS ?= 3
PYTHON ?=
TORCH ?= torch torchvision
TORCH_INDEX_URL ?=
CONSTRAINTS ?=
export PYTHON TORCH TORCH_INDEX_URL CONSTRAINTS

PYTHON_IN_VENV := "$(VENV)/bin/python"

.DEFAULT_GOAL := help
.PHONY: help demo test test-demo test-lowest test-ray coverage lint docs check format bench clean runtime development development-ray
# runtime and development share a directory, which `make -j` must not set up twice at once.
.NOTPARALLEL:

help: ## this list
	@echo 'usage: make TARGET [ARGS="…"] [VENV=DIR] [PYTHON=FILE] [TORCH="…"] [TORCH_INDEX_URL=URL]'
	@echo
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  \1 \2/p' Makefile | while read -r name text; do printf '  %-11s %s\n' "$$name" "$$text"; done
	@echo
	@echo '  ARGS             arguments of the command: make demo ARGS=--no-serve    make test ARGS="-k routing -x"'
	@echo '  VENV             virtual environment to use, created if missing (now: $(VENV))'
	@echo '  BASELINES        virtual environment for measuring the baselines, several GB (now: $(BASELINES))'
	@echo '  JOBS             number of test processes (now: $(JOBS))'
	@echo '  LOWEST           virtual environment of test-lowest (now: $(LOWEST))'
	@echo '  PYTHON           interpreter to create them with (default: python3.11, python3 or newer in PATH)'
	@echo '  TORCH            installed first (now: $(TORCH)); on Linux PyPI provides the CUDA build, several GB.'
	@echo '                   For a small CPU build pin one, as in TORCH="torch==X torchvision==Y", or set'
	@echo '  TORCH_INDEX_URL  package index for TORCH, such as the CPU index listed at pytorch.org/get-started'
	@echo '  pip reads its usual PIP_… variables and configuration.'

demo: runtime ## learn three products and serve them with a web page (ARGS=--no-serve: learn only)
	@"$(VENV)/bin/moleflow" demo $(ARGS)

# Tests start many processes: compiled modules are kept even where the environment forbids it.
test test-demo test-ray coverage: export PYTHONDONTWRITEBYTECODE =

# More processes than cores, because many tests only wait.
test: development ## run the tests in JOBS processes (ARGS: arguments of pytest)
	@$(PYTHON_IN_VENV) -m pytest --numprocesses "$(JOBS)" --dist worksteal $(ARGS)

test-demo: development ## test the demo from an installed wheel, which takes minutes
	@$(PYTHON_IN_VENV) -m pytest -m demo $(ARGS)

test-lowest: ## run the tests with the lowest supported versions of the dependencies
	@$(MAKE) --no-print-directory test VENV="$(LOWEST)" TORCH="torch torchvision" CONSTRAINTS=constraints-lowest.txt

test-ray: development-ray ## run the tests on a Ray cluster of two nodes, after installing Ray into VENV
	@$(PYTHON_IN_VENV) -m pytest -m ray tests/cluster $(ARGS)

coverage: development ## run the tests and report uncovered lines
	@$(PYTHON_IN_VENV) -m pytest --numprocesses "$(JOBS)" --dist worksteal --cov --cov-report=term-missing $(ARGS)

lint: development ## check style and types: ruff and mypy
	$(PYTHON_IN_VENV) -m ruff check .
	$(PYTHON_IN_VENV) -m ruff format --check .
	$(PYTHON_IN_VENV) -m mypy

docs: development ## build the documentation into build/site; warnings are errors
	NO_MKDOCS_2_WARNING=1 $(PYTHON_IN_VENV) -m mkdocs build --strict --quiet

check: lint docs ## run all static checks of CI

format: development ## fix and format the code with ruff
	$(PYTHON_IN_VENV) -m ruff check --fix .
	$(PYTHON_IN_VENV) -m ruff format .

bench: runtime ## measure speed, memory and the baselines into benchmarks/RESULTS.md (ARGS=--no-baselines: without)
	@$(PYTHON_IN_VENV) -m benchmarks all --baselines-folder "$(BASELINES)" $(ARGS)

clean: ## remove caches, build artefacts and the environments created by make, but no checkpoints or data
	rm -rf build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis .coverage*
	find model training service moleflow tests benchmarks -name __pycache__ -prune -exec rm -rf {} +
	@for made in "$(VENV)" "$(BASELINES)" "$(LOWEST)"; do if [ -e "$$made/.moleflow-made" ]; then echo "rm -rf $$made" && rm -rf "$$made"; fi; done

runtime:
	@sh scripts/environment.sh "$(VENV)" torch

development:
	@sh scripts/environment.sh "$(VENV)" dev

development-ray:
	@sh scripts/environment.sh "$(VENV)" dev-ray

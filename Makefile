# `make` alone lists what there is. Every target sets up what it needs, on a machine with Python, pip and make only.

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
.PHONY: help demo test test-demo test-lowest coverage lint docs check format bench clean runtime development
# Both environments are one directory: `make -j` must not set it up twice at once.
.NOTPARALLEL:

help: ## this list
	@echo 'usage: make TARGET [ARGS="…"] [VENV=DIR] [PYTHON=FILE] [TORCH="…"] [TORCH_INDEX_URL=URL]'
	@echo
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  \1 \2/p' Makefile | while read -r name text; do printf '  %-11s %s\n' "$$name" "$$text"; done
	@echo
	@echo '  ARGS             passed on: make demo ARGS=--no-serve    make test ARGS="-k routing -x"'
	@echo '  VENV             the environment to use, or to make where there is none (now: $(VENV))'
	@echo '  BASELINES        the environment that the baselines are measured in, several GB (now: $(BASELINES))'
	@echo '  JOBS             how many processes run the tests (now: $(JOBS))'
	@echo '  LOWEST           the environment of test-lowest (now: $(LOWEST))'
	@echo '  PYTHON           the interpreter to make it with (else the first of python3.11, python3, … that is new enough)'
	@echo '  TORCH            what pip installs first (now: $(TORCH)); on Linux the usual package index answers with the'
	@echo '                   CUDA build, several GB. For a small CPU build pin one, as in TORCH="torch==X torchvision==Y", or name'
	@echo '  TORCH_INDEX_URL  the index to take it from, such as the CPU index that pytorch.org/get-started names'
	@echo '  pip itself reads its usual PIP_… variables and configuration.'

demo: runtime ## learn three products from images, then serve them with a page (ARGS=--no-serve: learn only)
	@"$(VENV)/bin/moleflow" demo $(ARGS)

# Many tests wait, for a process or for a time to pass; so more of them run at once than there are cores.
test: development ## run the tests in JOBS processes (ARGS goes to pytest)
	@$(PYTHON_IN_VENV) -m pytest --numprocesses "$(JOBS)" --dist worksteal $(ARGS)

test-demo: development ## test the demonstration from an installed wheel, which takes minutes
	@$(PYTHON_IN_VENV) -m pytest -m demo $(ARGS)

test-lowest: ## run the tests with the lowest releases that pyproject.toml promises
	@$(MAKE) --no-print-directory test VENV="$(LOWEST)" TORCH="torch torchvision" CONSTRAINTS=constraints-lowest.txt

coverage: development ## run the tests and say which lines none of them reaches
	@$(PYTHON_IN_VENV) -m pytest --numprocesses "$(JOBS)" --dist worksteal --cov --cov-report=term-missing $(ARGS)

lint: development ## check style and types: ruff and mypy
	$(PYTHON_IN_VENV) -m ruff check .
	$(PYTHON_IN_VENV) -m ruff format --check .
	$(PYTHON_IN_VENV) -m mypy

docs: development ## build the documentation into build/site; every warning is an error
	NO_MKDOCS_2_WARNING=1 $(PYTHON_IN_VENV) -m mkdocs build --strict --quiet

check: lint docs ## all that CI checks without running the program

format: development ## let ruff rewrite what it can
	$(PYTHON_IN_VENV) -m ruff check --fix .
	$(PYTHON_IN_VENV) -m ruff format .

bench: runtime ## measure speed and memory, and the baselines, into benchmarks/RESULTS.md (ARGS=--no-baselines: without)
	@$(PYTHON_IN_VENV) -m benchmarks all --baselines-folder "$(BASELINES)" $(ARGS)

clean: ## remove caches, build leftovers and the environments that make made; never a checkpoint or data
	rm -rf build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis .coverage*
	find model training service moleflow tests benchmarks -name __pycache__ -prune -exec rm -rf {} +
	@for made in "$(VENV)" "$(BASELINES)" "$(LOWEST)"; do if [ -e "$$made/.moleflow-made" ]; then echo "rm -rf $$made" && rm -rf "$$made"; fi; done

runtime:
	@sh scripts/environment.sh "$(VENV)"

development:
	@sh scripts/environment.sh "$(VENV)" dev

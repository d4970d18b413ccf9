# Two commands matter: `make demo` and `make test`. Both start from a clean clone.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
PYTHON ?= python3
# Processes that `make test` divides the tests among; 0 runs them in pytest's own, which --pdb and -s need.
JOBS ?= 2
VENV := .venv
PY := $(VENV)/bin/python
STAMP := $(VENV)/.swapbench-installed

.PHONY: help setup demo test attacks lint format messages constraints clean

help: ## Show the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

setup: $(STAMP) ## Create .venv and install everything, pinned

$(STAMP): pyproject.toml constraints.txt $(wildcard locale/*/LC_MESSAGES/*.po)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Swapbench needs Python 3.11 or newer; $(PYTHON) is older. Try: make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 1; }
	@$(PY) -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv --clear $(VENV)
	$(PY) -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[test,lint]'
	$(PY) manage.py compilecatalogs
	@touch $@

demo: $(STAMP) ## Judge the sample pull requests and serve the pages on http://127.0.0.1:8000/
	@scripts/ensure-bubblewrap
	$(PY) manage.py demo $(ARGS)

test: $(STAMP) ## Run the tests (the quick ones; .ci/run runs all)
	@scripts/ensure-bubblewrap
	$(PY) -m pytest -q -m 'not slow and not browser' -n $(JOBS) --dist loadfile $(ARGS)

attacks: $(STAMP) ## Judge the whole corpus of hostile slot files (six minutes on two quiet cores; `make test` has the quick ones)
	@scripts/ensure-bubblewrap
	$(PY) -m pytest -q tests/attacks -o timeout=900 $(ARGS)

lint: $(STAMP) ## Check style, types and import contracts
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy
	$(VENV)/bin/lint-imports --no-cache

format: $(STAMP) ## Format the code
	$(VENV)/bin/ruff check --fix .
	$(VENV)/bin/ruff format .

messages: $(STAMP) ## Collect the texts of the pages for translation (needs GNU gettext), and compile what is translated
	$(PY) manage.py makemessages -l zh_Hans --no-wrap --no-location -i var -i .venv -i tests -i demo -i engine -i workers
	$(PY) manage.py compilecatalogs

constraints: ## Refresh constraints.txt from what is installed
	{ echo '# Exact versions that this tree was tested with; the Makefile installs with it. Refresh: make constraints'; $(PY) -m pip freeze --exclude-editable | sed 's/+cpu$$//' | grep -v ' @ '; } > constraints.txt

clean: ## Remove the runtime state (databases, broker, forge); keeps .venv
	rm -rf var

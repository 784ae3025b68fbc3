# Commands for a bare checkout: Python >= 3.10 is all they need.
PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin
# PyTorch for development; the pack itself never installs or replaces a torch.
TORCH := torch==2.13.0

.PHONY: demo test lint format mutants fuzz floors clean

demo: $(VENV)/.ready
	$(RUN)/infusion demo --out out/demo

test: $(VENV)/.ready
	$(RUN)/python -m pytest

lint: $(VENV)/.ready
	$(RUN)/ruff check .
	$(RUN)/ruff format --check .
	$(RUN)/lint-imports
	$(RUN)/mypy
	@mkdir -p $(VENV)/pack && ln -sfn "$(CURDIR)" $(VENV)/pack/infusion_pack  # a package name for the checkout
	MYPYPATH=$(VENV)/pack $(RUN)/mypy -p infusion_pack.nodes
	MYPYPATH=. $(RUN)/mypy --explicit-package-bases --ignore-missing-imports --exclude 'tests/(packs|host/pack)' \
		tests benchmarks scripts

# Changes the code line by line and says which changes no test notices; docs/mutants.md has the last result.
mutants: $(VENV)/.ready
	$(RUN)/python -m pip install --quiet --disable-pip-version-check ".[mutants]"
	$(RUN)/mutmut run
	$(RUN)/mutmut results

# Hands every reader thousands of broken inputs; prints the seed that makes them. docs/security.md has the last counts.
FUZZ ?= 10000
SEED ?= $(shell date +%s)
fuzz: $(VENV)/.ready
	FUZZ_EXAMPLES=$(FUZZ) $(RUN)/python -m pytest tests/fuzz --hypothesis-seed=$(SEED) --timeout=86400

# Core and embedded tests with the oldest versions that pyproject.toml allows and this machine can install; prints them.
# The oldest torch comes from PyTorch's index of CPU builds; where that cannot be reached it is the one above.
FLOORS := build/floors
UV := VIRTUAL_ENV=$(FLOORS) $(FLOORS)/bin/uv pip
floors:
	$(PYTHON) -m venv --clear $(FLOORS)
	$(FLOORS)/bin/python -m pip install --quiet --disable-pip-version-check uv
	$(UV) install --quiet --resolution lowest-direct --torch-backend cpu "torch>=2.6" || \
		$(FLOORS)/bin/python -m pip install --quiet --disable-pip-version-check "$(TORCH)"
	$(UV) install --quiet --resolution lowest-direct --only-binary :all: -r pyproject.toml --extra standalone --extra test
	@$(UV) list --exclude uv
	$(FLOORS)/bin/python -m pytest tests/core tests/embedded

format: $(VENV)/.ready
	$(RUN)/ruff check --fix .
	$(RUN)/ruff format .

clean:
	rm -rf $(VENV) out

$(VENV)/.ready: pyproject.toml
	@$(RUN)/python -m pip --version >/dev/null 2>&1 \
		|| $(PYTHON) -m venv $$($(RUN)/python -c "" 2>/dev/null || echo --clear) $(VENV)  # also one that was left half made
	$(RUN)/python -m pip install --quiet --disable-pip-version-check "$(TORCH)"
	$(RUN)/python -m pip install --quiet --disable-pip-version-check --editable ".[standalone,dev]"
	@touch $@

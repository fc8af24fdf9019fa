# Contracts: `make demo` and `make test` need only Python 3.11+, pip and make.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
WORKDIR ?= runs/demo

.PHONY: demo test test-plan coverage lint format clean

# Of the C library on Linux: pages of 2 MiB, so that a step's temporary memory costs the kernel less.
demo: export GLIBC_TUNABLES ?= glibc.malloc.hugetlb=1
demo: $(VENV)/.ready  ## Train SpecTran on MovieLens-100K; prints the test metrics and the report's path.
	$(BIN)/python -m experiments.train --dataset=movielens_100k --item_encoder=spectran \
		--max_length=100 --batch_size=64 --learning_rate=0.003 --epochs=80 --eval_every=5 --workdir=$(WORKDIR)

# Files as they come: by number of tests, files of one long test would come last, on one worker.
PYTEST := $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

test: $(VENV)/.ready-dev  ## The whole test suite.
	$(PYTEST)

# Apart, as with the TPU's compiler in its environment JAX looks for a TPU in every run, and complains that there is none.
test-plan: $(VENV)/libtpu/.ready  ## The tests that compile for a TPU, which `make test` skips. Linux on x86-64.
	PYTHONPATH=$(VENV)/libtpu $(BIN)/python -m pytest tests/planning tests/backbones/test_hstu.py

# Apart, as counting lines takes a quarter more time. Those that run in processes of their own (meshes, clusters, whole
# commands) are not counted.
coverage: $(VENV)/.ready-dev  ## The whole test suite, with the lines that it reaches.
	$(PYTEST) --cov --cov-report=term-missing:skip-covered --cov-fail-under=88

lint: $(VENV)/.ready-dev  ## Style and types.
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(VENV)/.ready-dev  ## Mend what the linter can mend.
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:  ## Remove what make created; your runs and prepared data in the user's cache stay.
	rm -rf $(VENV) runs/demo build dist *.egg-info .pytest_cache .ruff_cache .mypy_cache .hypothesis .coverage*
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(VENV)/.ready: requirements.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "spectran_jax needs Python 3.11 or newer; name one with make PYTHON=..." >&2; exit 2; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.txt
	touch $@

# The version that JAX asks for.
$(VENV)/libtpu/.ready: $(VENV)/.ready-dev
	rm -rf $(VENV)/libtpu
	libtpu="$$($(BIN)/python -c 'from spectran_jax.planning.compiler import asked_for; print(asked_for())')" && \
		test -n "$$libtpu" || { echo "JAX does not say which libtpu it asks for" >&2; exit 2; } && \
		$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --target $(VENV)/libtpu "$$libtpu"
	touch $@

$(VENV)/.ready-dev: $(VENV)/.ready pyproject.toml
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[dev]'
	touch $@

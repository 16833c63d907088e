# Two commands do all the set-up: `make demo` and `make test`.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PYTEST := $(BIN)/python -m pytest -q -n auto

.PHONY: demo env test test-fast test-all check bench clean

# Where photos of flowers are at hand, from trained weights; else digits, from scratch.
PHOTOS := --data $(PROXYLESSNAS_DATA)/flowers --loading.limit 1500 --image-size 96 \
	--pretrained efficientnet_lite0 --target-latency 0.5x
DEMO := $(if $(PROXYLESSNAS_DATA),$(PHOTOS),--config src/proxylessnas/recipes/demo.yaml)

demo: env
	rm -rf runs/demo
	$(BIN)/proxylessnas run $(DEMO) --out runs/demo

env: $(VENV)/.complete

$(VENV)/.complete: requirements.txt pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-build-isolation --no-deps -e .
	touch $@

test: env
	$(PYTEST)

test-fast: env
	$(PYTEST) -m "not slow"

test-all: env  # every seed and example
	TESTS=thorough $(PYTEST)

check: env
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/python -m pytest -q tests/test_imports.py

bench: env  # the short form, under five minutes; each benchmark says what its long form is
	GOMP_SPINCOUNT=1000 $(BIN)/python benchmarks/step.py --short --rounds 5
	GOMP_SPINCOUNT=1000 $(BIN)/python benchmarks/overhead.py --no-table

clean:
	rm -rf $(VENV) runs

# Two commands do all the set-up: `make demo` and `make test`.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PYTEST := $(BIN)/python -m pytest -q -n auto

# PyPI's torch for Linux brings 5 GB of CUDA. Where there is no GPU, the same version for CPUs comes
# first, if its index is to be had.
PIP := $(BIN)/python -m pip --disable-pip-version-check
TORCH_INDEX ?= https://download.pytorch.org/whl/cpu
CPU_TORCH := $(if $(shell command -v nvidia-smi),,$(PIP) install --quiet --retries 0 --timeout 10 \
	--index-url $(TORCH_INDEX) $$(grep -E '^torch(vision)?==' requirements.txt) 2>/dev/null \
	|| echo 'the CPU build of torch is not to be had here: the one of PyPI follows')

.PHONY: demo docs notebooks env test test-fast test-all check bench clean

# From trained weights, on crops of photographs that a package carries: nothing is downloaded.
demo: env
	rm -rf runs/demo
	$(BIN)/proxylessnas run --data surfaces --image-size 64 --pretrained efficientnet_lite0 \
		--target-latency 0.5x --out runs/demo

env: $(VENV)/.complete

$(VENV)/.complete: requirements.txt pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(CPU_TORCH)
	$(PIP) install --quiet -r requirements.txt
	$(PIP) install --quiet --no-build-isolation --no-deps -e .
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

docs: env  # the site, in site/
	$(PIP) install --quiet -r docs/requirements.txt
	$(BIN)/mkdocs build --strict

notebooks: env  # execute those of the guide again, each by itself; needs docs/requirements.txt
	for name in $(CURDIR)/docs/notebooks/*.ipynb; do \
		place=$$(mktemp -d)/$$(basename $$name) && cp $$name $$place && \
		PATH=$(CURDIR)/$(BIN):$$PATH python -m nbconvert --to notebook --execute --inplace \
			--ExecutePreprocessor.record_timing=False $$place && \
		$(CURDIR)/$(BIN)/python -m nbconvert --to notebook --coalesce-streams --inplace $$place && \
		cp $$place $$name || exit 1; \
	done

clean:
	rm -rf $(VENV) runs site

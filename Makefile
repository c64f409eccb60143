# One entry for everything: `make help` lists the targets. Each sets up what it needs in .venv, once, and again when
# pyproject.toml changes. Two stamps: running the proxy needs far less than working on it.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install -qq --disable-pip-version-check

PYTEST_ARGS ?=
INTEROP_ARGS ?=
PAGE_ARGS ?=
BOUNDS_ARGS ?=
SOAK_ARGS ?=
FAULTS_ARGS ?=
LIFECYCLE_ARGS ?=
LAB_ARGS ?=
BENCH_ARGS ?=
PROFILE_ARGS ?=

RUNTIME := $(VENV)/.runtime
DEV := $(VENV)/.dev

# Fails early and says what to install: Debian's python3 comes without ensurepip, so without working virtual environments.
define CHECK_PYTHON
import sys
name = "python%d.%d" % sys.version_info[:2]
if sys.version_info < (3, 11):
    sys.exit("$(PYTHON) is Python %d.%d; 3.11 or newer is needed: make PYTHON=/path/to/python3.11" % sys.version_info[:2])
try:
    import ensurepip, venv
except ImportError:
    sys.exit("$(PYTHON) cannot make virtual environments. On Debian and Ubuntu: apt-get install python3-venv (or %s-venv)" % name)
endef
export CHECK_PYTHON

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help venv demo test check format interop page bounds soak faults lifecycle attacks balance lab fuzz dist bench profile clean

help: ## list the targets
	@sed -nE 's/^([a-z]+):.*## (.*)/  make \1|\2/p' Makefile | while IFS='|' read -r target text; do \
		printf '%-16s %s\n' "$$target" "$$text"; done

$(RUNTIME): pyproject.toml
	@command -v $(PYTHON) >/dev/null || { echo "$(PYTHON) is not installed. On Debian and Ubuntu: apt-get install python3 python3-venv" >&2; exit 1; }
	@$(PYTHON) -c "$$CHECK_PYTHON"
	@test -x $(BIN)/pip || { echo "making $(VENV)"; $(PYTHON) -m venv --clear $(VENV); }
	@echo "installing rawgrpc-proxy into $(VENV)"
	@$(PIP) -e .
	@touch $@

$(DEV): $(RUNTIME)
	@echo "installing the tools for development into $(VENV)"
	@$(PIP) -e '.[dev]'
	@touch $@

venv: $(DEV) ## make .venv, with all that is needed for development

demo: $(RUNTIME) ## run the proxy before a built-in backend and show calls going through
	$(BIN)/rawgrpc-proxy demo

# Coverage is judged on the whole: for a part of the tests, .venv/bin/python -m pytest tests/http2
test: $(DEV) ## run the tests, and measure what they cover (PYTEST_ARGS=...)
	$(BIN)/python -m pytest --cov $(PYTEST_ARGS)

check: $(DEV) ## all that must hold before a commit: format, lint, types, imports, tests
	$(BIN)/ruff format --check
	$(BIN)/ruff check
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo
	$(MAKE) test

format: $(DEV) ## format the code, and mend what the linter can mend
	$(BIN)/ruff check --fix-only
	$(BIN)/ruff format

# What is asked for with INTEROP_ARGS is a part, or the other engine; TLS is below both, and once is enough.
interop: $(DEV) ## run against real gRPC peers (INTEROP_ARGS=...)
	sh interop/setup.sh $(BIN)/python
	$(BIN)/python -m interop.matrix $(INTEROP_ARGS)
	$(if $(strip $(INTEROP_ARGS)),,$(BIN)/python -m interop.matrix --tls)
	$(if $(strip $(INTEROP_ARGS)),,$(BIN)/python -m interop.tls)
	$(if $(strip $(INTEROP_ARGS)),,$(BIN)/python -m interop.metrics)

page: $(DEV) ## look at the page of the admin listener with Chromium (PAGE_ARGS=...)
	sh interop/page/setup.sh
	$(BIN)/python -m interop.page $(PAGE_ARGS)

bounds: $(DEV) ## measure what the README promises: memory with slow readers, streams per connection (BOUNDS_ARGS=...)
	$(BIN)/python -m interop.promises.bounds $(BOUNDS_ARGS)

soak: $(DEV) ## 30 minutes of honest clients at full load: none may lose its connection (SOAK_ARGS=...)
	sh interop/setup.sh $(BIN)/python
	$(BIN)/python -m interop.promises.soak $(SOAK_ARGS)

faults: $(DEV) ## networks, backends and callers that fail: what is promised for each, and what comes of it (FAULTS_ARGS=...)
	sh interop/setup.sh $(BIN)/python
	$(BIN)/python -m interop.faults $(FAULTS_ARGS)

lifecycle: $(DEV) ## reloads, upgrades and killed workers under load: who loses a call (LIFECYCLE_ARGS=...)
	sh interop/setup.sh $(BIN)/python
	$(BIN)/python -m interop.promises.lifecycle $(LIFECYCLE_ARGS)

balance: $(DEV) ## which backend gets which call, by each policy of balancing (BALANCE_ARGS=...)
	sh interop/setup.sh $(BIN)/python
	$(BIN)/python -m interop.promises.balance $(BALANCE_ARGS)

lab: $(DEV) ## record, replay, lint, tap and faults by preset, with real peers: what is promised of each (LAB_ARGS=...)
	sh interop/setup.sh $(BIN)/python
	$(BIN)/python -m interop.lab $(LAB_ARGS)

attacks: $(DEV) ## attack the proxy from both sides, and see who is hurt (ATTACKS_ARGS=...)
	$(BIN)/python -m interop.attacks $(ATTACKS_ARGS)

fuzz: $(DEV) ## fuzz what reads what peers send, a minute for each target (FUZZ_ARGS=...)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[fuzz]'
	$(BIN)/python -m tests.fuzz $(FUZZ_ARGS)

dist: $(DEV) ## build the sdist and the wheel, look them over, and try both in places of their own
	rm -rf dist build .venv-dist
	$(BIN)/python -m build
	$(BIN)/twine check --strict dist/*
	$(BIN)/check-wheel-contents dist
	$(PYTHON) -m venv .venv-dist
	.venv-dist/bin/python -m pip install -qq --disable-pip-version-check dist/*.whl
	.venv-dist/bin/rawgrpc-proxy --version
	.venv-dist/bin/rawgrpc-proxy demo
	test -f .venv-dist/share/man/man1/rawgrpc-proxy.1
	mkdir -p build/sdist
	tar -xzf dist/*.tar.gz -C build/sdist --strip-components 1
	cd build/sdist && PYTHONPATH=src "$(CURDIR)/$(BIN)/python" -m pytest -q -p no:cacheprovider --collect-only >../collected || \
		{ tail -20 ../collected; exit 1; }
	cd build/sdist && PYTHONPATH=src "$(CURDIR)/$(BIN)/python" -m pytest -q -p no:cacheprovider tests/test_*.py \
		tests/command/test_man.py tests/command/settings/test_docs.py

bench: ## measure the proxy beside others in one run (BENCH_ARGS=...)
	sh interop/bench/setup.sh
	.venv-bench/bin/python -m interop.bench $(BENCH_ARGS)

profile: ## run the proxy under load and see where the time goes (PROFILE_ARGS=...)
	sh interop/bench/setup.sh
	.venv-bench/bin/python -m interop.bench.profile $(PROFILE_ARGS)

clean: ## remove all that the other targets made
	rm -rf $(VENV) .venv-313 .venv-pypy .venv-dist .venv-bench .venv-bench-pypy interop/bench/results interop/peers/build interop/peers/generated \
		interop/peers/grpc_js/node_modules interop/page/node_modules .coverage .coverage.* htmlcov build dist .hypothesis .import_linter_cache \
		.mypy_cache .pytest_cache .ruff_cache fuzz-found
	find src tests interop -name __pycache__ -type d -prune -exec rm -rf {} +

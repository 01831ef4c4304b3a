# One command each, the same ones on a desk and in CI. `make` lists them.
#
#   PYTHON=python3.12 make setup     another interpreter (>= 3.11)
#   make test ARGS="-k extend -x"    anything for pytest

PYTHON ?= python3
ARGS ?=
SECONDS ?= 3600
BIN := .venv/bin
STAMP := .venv/.setup-done
# A process per core; ARGS="-n 0" is one, as a debugger wants it.
PYTEST := $(BIN)/pytest -n auto
# Made apart from .venv: the tool that writes the locks is not part of what they lock.
LOCK_TOOL := pip-tools==7.6.2
LOCK_ENV := .cache/lock-venv
# No address and no machine's own setting may get into a lock file.
LOCK := $(LOCK_ENV)/bin/pip-compile --quiet --generate-hashes --strip-extras --no-header \
	--no-emit-index-url --no-emit-find-links --no-emit-trusted-host --allow-unsafe pyproject.toml

export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: help setup demo check test test-all test-slow test-faults test-sim test-histories sim-long histories flips images cover bench golden docs lock release clean

help: ## list the commands
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: $(STAMP) ## make .venv and install the locked packages and jqd itself (at once if nothing changed)
	@:

$(STAMP): requirements-dev.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "jqd needs Python 3.11 or later: make setup PYTHON=python3.11")'
	@$(PYTHON) -c 'import ensurepip, venv' || { echo 'Python has no venv: apt-get install python3-venv' >&2; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@echo 'installing into .venv'
	@# The lock is whole, so nothing is resolved: what it names is installed, whatever has been released since.
	@$(BIN)/python -m pip install --quiet --require-hashes --no-deps --only-binary :all: -r requirements-dev.lock
	@$(BIN)/python -m pip install --quiet --no-deps --no-build-isolation --config-settings editable_mode=compat -e .
	@$(BIN)/python -m pip --quiet check
	@touch $@

demo: setup ## start jqd and watch jobs go from submit through lease to ack
	@$(BIN)/python scripts/demo.py

check: setup ## format, lint, types, house rules
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/pytest -q -p no:randomly tests/test_architecture.py

test: setup ## the tests that need nothing else (unit, property, golden, house rules, e2e smoke)
	$(PYTEST) $(ARGS)

test-all: test test-slow test-faults test-sim test-histories ## `test`, then the slow suites

test-slow: setup ## the slow suites alone: kill -9 loop, installation from the wheel
	$(PYTEST) -m 'slow and not faults and not sim and not history' $(ARGS)

test-faults: setup ## real faults on real daemons (docs/faults.md): needs root, strace and faketime, as CI has them
	$(PYTEST) -m faults $(ARGS)

test-sim: setup ## the simulator in its full volume: plans, planted bugs, crash images, crash loops (docs/evidence.md)
	$(BIN)/python -m tests.sim run --min-steps 3000000 --json .cache/sim.json
	$(BIN)/python -m tests.sim planted
	$(PYTEST) -m sim -rP $(ARGS)

sim-long: setup ## plans and crash images from a random seed for SECONDS (3600), on all cores: ARGS="--first SEED"
	$(BIN)/python -u -m tests.sim long --seconds $(SECONDS) --json .cache/sim-long.json $(ARGS)

test-histories: setup ## two histories of real clients whose daemon is killed again and again, judged by both checks
	@# One after the other: each has processes enough for all cores, and is judged by its pace too.
	$(BIN)/pytest -m history $(ARGS)

histories: setup ## more of them: ARGS="--minutes 30"; what is wrong stays in .cache/histories
	$(BIN)/python -m tests.history run $(ARGS)

images: setup ## start on every disk that a crash can leave, of more lives: ARGS="--seeds 10"
	$(BIN)/python -m tests.sim.images $(ARGS)

flips: setup ## each bit of reference logs and snapshots flipped once, 450,000 starts (docs/faults.md)
	$(BIN)/python -m tests.sim.flips $(ARGS)

cover: setup ## branch coverage; 100 % where a bug loses jobs: core, protocol, record, segment, snapshot, recovery
	$(BIN)/pytest -q -m 'not slow and not e2e' --cov --cov-report= $(ARGS)
	$(BIN)/coverage report
	$(BIN)/coverage report --fail-under=100 --include='jqd/core/*,jqd/protocol/*,jqd/storage/record.py,jqd/storage/segment.py,jqd/storage/snapshot.py,jqd/storage/recovery.py'

bench: setup ## what jqd costs, and its speed beside beanstalkd and Redis; docs/performance.md (never a test)
	$(BIN)/python -m tests.bench $(ARGS)

golden: setup ## write the golden vectors anew; read the diff before you commit it
	set -e; for maker in tests/golden/make_*.py; do $(BIN)/python -m "tests.golden.$$(basename "$$maker" .py)"; done
	git status --short tests/golden

docs: setup ## write anew the parts of docs/ that are made from the code; read the diff before you commit it
	$(BIN)/python -m tests.server.test_config
	$(BIN)/python -m tests.jqctl.test_docs
	$(BIN)/python -m tests.client.test_docs
	$(BIN)/python -m tests.sim.test_evidence
	git status --short docs

lock: ## resolve the lock files anew; LOCK_ARGS=--upgrade takes newer versions
	@test -x $(LOCK_ENV)/bin/pip-compile || { $(PYTHON) -m venv $(LOCK_ENV) && $(LOCK_ENV)/bin/python -m pip install --quiet $(LOCK_TOOL); }
	$(LOCK) $(LOCK_ARGS) -o requirements.lock
	$(LOCK) $(LOCK_ARGS) --extra server -o requirements-server.lock
	$(LOCK) $(LOCK_ARGS) --extra server --extra dev -o requirements-dev.lock

release: setup ## build the sdist and the wheel into dist/ (the same wheel for the same commit)
	rm -rf build dist
	SOURCE_DATE_EPOCH=$$(git log -1 --format=%ct) $(BIN)/python -m build --no-isolation

clean: ## remove what the other commands made; .venv goes too
	rm -rf .venv .cache build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis .coverage
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

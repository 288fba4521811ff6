# Every target does all of its own set-up: Debian packages as root (else it says which are missing),
# Python's into .venv, PostgreSQL servers into .build. Nothing else is touched.

PYTHON ?= python3
PG ?= default# or 14, 15, 16, 17, 18; default: the newest that the system has
VERSIONS := 14 15 16 17 18

BIN := .venv/bin
POSTGRES := $(BIN)/python tools/postgres.py
PACKAGED := bindings/python/src/procrastinate_sql/sql/install.sql
SQL := $(wildcard sql/*.sql migrations/*.sql)
PYTHON_CODE := bindings/python tests $(wildcard tools bench examples)

# pgTAP in a schema of its own, so that `public` holds just what install.sql made.
PGTAP := psql -X -q -v ON_ERROR_STOP=1 \
	-c 'create schema tap' -c 'create extension pgtap schema tap' \
	-c 'alter database postgres set search_path = public, tap' \
	-f sql/install.sql && pg_prove --ext .sql

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

.PHONY: help
help: ## Show this list
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/\1|\2/p' $(MAKEFILE_LIST) \
		| awk -F'|' '{printf "  make %-12s %s\n", $$1, $$2}'
	@echo 'PG=14 … PG=18 chooses the server of test, test-sql and test-python.'

.PHONY: demo
demo: .venv/binding $(PACKAGED) ## Watch the queue at work; needs no server and no root (ARGS=…)
	$(POSTGRES) run 18 -- $(BIN)/python examples/demo/demo.py $(ARGS)

.PHONY: test
test: lint test-sql test-python ## Lint, then run all tests on one server

.PHONY: test-all
test-all: $(VERSIONS:%=test-%) ## Run all tests on PostgreSQL 14, 15, 16, 17 and 18

.PHONY: $(VERSIONS:%=test-%)
$(VERSIONS:%=test-%): test-%:
	$(MAKE) test-sql test-python PG=$*

.PHONY: test-sql
test-sql: .venv/bin/pip test-programs ## Run the pgTAP tests (TESTS=tests/sql/…)
	$(POSTGRES) run $(PG) -- sh -c "$(PGTAP) $(or $(TESTS),tests/sql/*.sql)"

.PHONY: test-python
test-python: .venv/dev .venv/binding $(PACKAGED) test-programs ## Run the Python tests (ARGS=… goes to pytest)
	PROCRASTINATE_PG=$(PG) $(BIN)/pytest $(or $(TESTS),tests/python) $(ARGS)

.PHONY: stress
stress: .venv/dev .venv/binding $(PACKAGED) test-programs ## Stress with eight processes for a minute (OVERLAY=file.sql)
	PROCRASTINATE_PG=$(PG) PROCRASTINATE_OVERLAY=$(OVERLAY) PROCRASTINATE_STRESS_SECONDS=60 \
		$(BIN)/pytest -s tests/python/test_stress.py $(ARGS)

.PHONY: faults
faults: .venv/dev .venv/bench-smoke .venv/binding $(PACKAGED) test-programs ## Kill, crash, freeze, cut off; then audit (SIZE=small, 20000, full)
	@sh tools/setup.sh faults
	PROCRASTINATE_PG=$(PG) FAULTS_SIZE=$(or $(SIZE),full) $(BIN)/pytest -s $(or $(TESTS),tests/faults) $(ARGS)

# What it measured is plotted however it ended.
.PHONY: soak
soak: .venv/bench ## Load for 30 minutes with kills, deploys, a held snapshot (MINUTES=2 RATE=0.7)
	SOAK_MINUTES=$(MINUTES) SOAK_SHARE=$(RATE) $(MAKE) faults TESTS=tests/faults/test_soak.py; status=$$?; \
		PYTHONPATH=tests/faults:tools $(BIN)/python -m harness.soak_report && exit $$status

.PHONY: burst
burst: ## Defer a million jobs in a minute, while workers run them
	$(MAKE) faults TESTS=tests/faults/test_burst.py

.PHONY: bench
bench: .venv/bench .venv/binding $(PACKAGED) test-programs ## Measure against the peers (ARGS='--scale 0.05')
	@sh tools/setup.sh npm
	$(BIN)/python -m bench $(ARGS)

.PHONY: bench-smoke
bench-smoke: .venv/bench-smoke .venv/binding $(PACKAGED) test-programs ## The same, tiny: fails on a wrong result
	$(BIN)/python -m bench --smoke $(ARGS)

.PHONY: lint
lint: lint-python lint-sql lint-docs ## Check style, types, function bodies, docs and checksums

.PHONY: lint-python
lint-python: .venv/dev .venv/binding $(PACKAGED)
	$(BIN)/ruff check $(PYTHON_CODE)
	$(BIN)/ruff format --check $(PYTHON_CODE)
	$(BIN)/mypy --config-file bindings/python/pyproject.toml \
		bindings/python/src tools examples/demo/*.py examples/python/*.py

# On the system's PostgreSQL, which alone has plpgsql_check.
.PHONY: lint-sql
lint-sql: .venv/dev test-programs
	$(BIN)/sqlfluff lint --processes 2 sql migrations tests/sql
	$(BIN)/python tools/lint_bodies.py sql/*.sql
	$(BIN)/python tools/lint_security.py
	cd migrations && sha256sum --check --quiet checksums.sha256
	$(POSTGRES) run default -- sh -c "$(PGTAP) tests/sql/lint/*.sql"

.PHONY: lint-docs
lint-docs: .venv/dev
	$(BIN)/python tools/protocol_docs.py --check

.PHONY: format
format: .venv/dev ## Format Python, and what sqlfluff can of the SQL
	$(BIN)/ruff check --fix $(PYTHON_CODE)
	$(BIN)/ruff format $(PYTHON_CODE)
	$(BIN)/sqlfluff format --processes 2 sql migrations tests/sql

.PHONY: docs
docs: .venv/dev ## Write docs/protocol.md from the catalog's comments
	$(BIN)/python tools/protocol_docs.py

.PHONY: build
build: .venv/dev ## Build the Python package into .build/dist
	$(BIN)/python -m build --outdir .build/dist bindings/python

.PHONY: freeze
freeze: ## Add the checksums of new migrations; released ones never change
	cd migrations && touch checksums.sha256 && for file in [0-9]*.sql; do \
		grep -q "  $$file$$" checksums.sha256 || sha256sum $$file >> checksums.sha256; done

.PHONY: clean
clean: ## Remove everything that make made
	rm -rf .venv .build $(dir $(PACKAGED)) .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -prune -exec rm -rf {} +

# --- What the targets above need -------------------------------------------------------------------

.venv/bin/pip:
	PYTHON=$(PYTHON) sh tools/setup.sh venv

.venv/binding: bindings/python/pyproject.toml bindings/python/hatch_build.py | .venv/bin/pip
	$(BIN)/pip install --quiet --disable-pip-version-check --editable 'bindings/python[binary]'
	@touch $@

.venv/dev: tools/requirements.txt | .venv/bin/pip
	$(BIN)/pip install --quiet --disable-pip-version-check --requirement tools/requirements.txt
	@touch $@

.venv/bench: bench/requirements.txt bench/requirements-smoke.txt | .venv/bin/pip
	$(BIN)/pip install --quiet --disable-pip-version-check --requirement bench/requirements.txt
	@touch $@ .venv/bench-smoke

.venv/bench-smoke: bench/requirements-smoke.txt | .venv/bin/pip
	$(BIN)/pip install --quiet --disable-pip-version-check --requirement bench/requirements-smoke.txt
	@touch $@

$(PACKAGED): $(SQL) tools/flatten.py | .venv/bin/pip
	$(BIN)/python tools/flatten.py --package $(@D)

.PHONY: test-programs
test-programs:
	@sh tools/setup.sh test

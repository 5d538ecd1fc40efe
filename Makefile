# Every command that a contributor or CI needs; `make` alone prints them.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
RUN := $(BIN)/python
PODS := $(addprefix tests/e2e/test_,seeing.py faults.py histories.py namespaces.py rights.py selectors.py)
LIBRARY := $(addprefix tests/integration/,etcd client registration coexistence)
CLI := tests/integration/cli
QUICK := not faults and not interop and not matrix

.DEFAULT_GOAL := help
.PHONY: help dev gen lint docs check fmt test test-unit test-library test-cli test-parts test-e2e test-faults test-faults-parts test-faults-e2e test-faults-pods test-model test-interop test-matrix test-simulation test-cluster hunt simulate demo bench-etcd bench-operator bench-client image release-dry-run clean

help: ## Print this list
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / {printf "  make %-18s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

$(VENV)/.ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --upgrade pip
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[operator,cli]' --group dev
	@touch $@

dev: $(VENV)/.ready ## Make the virtual environment with everything that development needs

gen: dev ## Write all generated files
	$(RUN) -m testbed.generate

lint: dev ## Lint, types, import rules, dependencies, dead code, freshness of generated files
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/deptry resolver --optional-dependencies-dev-groups operator
	$(BIN)/deptry operator --optional-dependencies-dev-groups cli,opentelemetry
	$(BIN)/deptry testbed bench examples tests --ignore DEP002,DEP004
	$(BIN)/vulture
	$(RUN) -m testbed.generate --check

docs: dev ## Build the documentation as a site, in dist/site; warnings are errors
	$(RUN) -m sphinx --quiet --fail-on-warning --keep-going --builder html --conf-dir docs . dist/site

check: lint ## The same, the links and lines of the pages, and the fast tests (under two minutes)
	$(RUN) -m pytest -q tests/unit tests/docs/test_links.py

fmt: dev ## Format the code
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

test: test-unit test-library test-cli test-parts test-e2e ## Run every test but the slow ones, on a real etcd and a real API server

test-unit: dev ## Run the tests of the pure code
	$(RUN) -m pytest tests/unit

test-library: dev ## Run the tests of the library's parts
	$(RUN) -m testbed.build
	$(RUN) -m pytest -m '$(QUICK)' $(LIBRARY)

test-cli: dev ## Run the tests of the command line
	$(RUN) -m testbed.build
	$(RUN) -m pytest -m '$(QUICK)' $(CLI)

test-parts: dev ## Run the tests of all other parts
	$(RUN) -m testbed.build
	$(RUN) -m pytest -m '$(QUICK)' $(addprefix --ignore ,tests/unit tests/e2e $(LIBRARY) $(CLI)) tests

test-e2e: dev ## Run the tests of the whole on an API server and an etcd
	$(RUN) -m testbed.build
	$(RUN) -m pytest -m '$(QUICK)' tests/e2e

test-faults: test-faults-e2e test-faults-pods test-model test-faults-parts ## Run the slow tests that kill, freeze and cut off real processes

test-faults-parts: dev ## Run those of each part
	$(RUN) -m testbed.build
	$(RUN) -m pytest -m faults --ignore tests/e2e tests

test-faults-e2e: dev ## Run those of the whole, but for the next ones
	$(RUN) -m testbed.build
	$(RUN) -m pytest -m faults --ignore tests/e2e/model $(PODS:%=--ignore %) tests/e2e

test-faults-pods: dev ## Run those of how Pods are seen, with either source
	$(RUN) -m testbed.build
	$(RUN) -m pytest -m faults $(PODS)

test-model: dev ## Run the random model of bad days for five minutes, with a seed that it prints
	$(RUN) -m testbed.build
	$(RUN) -m pytest -m faults tests/e2e/model

test-interop: dev ## Run the real Go clients and writers of every format against ours
	$(RUN) -m testbed.build --interop
	$(RUN) -m pytest -m interop tests

test-matrix: dev ## Run beside other etcd clients in one process, and read our keys with the package etcd3
	$(RUN) -m testbed.build
	$(RUN) -m pytest -m matrix tests

test-simulation: dev ## Simulate random faults for three minutes, with fresh seeds that it prints
	$(MAKE) simulate SECONDS=180

test-cluster: dev ## Install image and chart on the cluster of KUBECONFIG and roll everything under load
	$(RUN) -m testbed.cluster

hunt: dev ## Draw many other examples in every test of drawn examples (TIMES=100, ONLY=tests/unit/client)
	$(RUN) -m testbed.build
	HUNT_TIMES=$(or $(TIMES),20) $(RUN) -m pytest -m hypothesis --hypothesis-profile hunt --timeout 0 $(or $(ONLY),--ignore tests/e2e tests)

simulate: dev ## Run the operator through random faults on a virtual clock, seed after seed (SEED=1, HOURS=100, SECONDS=180, SCENARIO="etcd is full, pod comes", MUTANT=all, TABLE=docs/architecture.md)
ifdef MUTANT
	PYTHONHASHSEED=0 $(RUN) -m tests.simulation.mutants $(filter-out all,$(MUTANT)) $(if $(SEED),--seed $(SEED)) $(if $(SECONDS),--seconds $(SECONDS))
else
	PYTHONHASHSEED=0 $(RUN) -m tests.simulation $(if $(SEED),--seed $(SEED)) --hours $(or $(HOURS),$(if $(SECONDS),1e6,10)) $(if $(SECONDS),--seconds $(SECONDS)) $(if $(SCENARIO),--scenario "$(SCENARIO)") $(if $(TABLE),--table $(TABLE))
endif

demo: dev ## Show the main job on a real API server and a real etcd (KEEP=1 stays up, CLUSTER=1 uses KUBECONFIG, PICTURE=FILE draws it)
	$(RUN) -m testbed.demo $(if $(KEEP),--keep) $(if $(CLUSTER),--cluster) $(if $(PICTURE),--picture $(PICTURE))

bench-etcd: dev ## Measure the etcd layer beside other clients
	$(RUN) -m testbed.build
	$(RUN) -m bench.bench_etcd

bench-operator: dev ## Measure the operator with either source of Pods beside the EndpointSlice controller and a Go writer
	$(RUN) -m testbed.build --bench
	$(RUN) -m bench.bench_operator

bench-client: dev ## Measure channels beside native ones
	$(RUN) -m testbed.build
	$(RUN) -m bench.bench_client

image: ## Build the operator's image with docker, podman or buildah
	./testbed/image.sh

release-dry-run: dev ## Make and check all that a release publishes, in dist/release (TAG=v0.1.0, IMAGE=repository, URL=source, NO_IMAGE=1)
	$(RUN) -m testbed.release $(if $(TAG),--tag $(TAG)) $(if $(IMAGE),--image $(IMAGE)) $(if $(URL),--url $(URL)) $(if $(NO_IMAGE),--no-image)

clean: ## Remove what make made in this checkout (binaries stay in their cache)
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache dist

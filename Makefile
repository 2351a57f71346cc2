# The same few commands for people and CI. Everything happens inside .venv; nothing else on the machine is touched.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
PART := 1/1

.PHONY: help install demo test test-unit test-slow test-all bench-accuracy bench-backpressure bench-client bench-deep bench-gpt2 bench-ingest bench-minilm bench-radius bench-start bench-step bench-defaults bench-binary
.PHONY: client-binary client-binary-wheels wheel wheel-check test-versions sbom docs reference invariants lint format proto dashboards clean

help:  ## show this list
	@grep -E '^[a-z0-9-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z0-9-]+):.*## /\1\t/' | expand -t 12

install: $(STAMP)  ## create .venv and install HERON with everything for development

$(STAMP): pyproject.toml constraints.txt
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade 'pip>=24' -c constraints.txt
	# torch first and pinned: a range would take the largest build there is.
	$(BIN)/python -m pip install --quiet -c constraints.txt torch
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[dev]'
	@touch $(STAMP)

demo: install  ## train real handwritten digits with a server and four client processes, then show the table
	@$(BIN)/heron demo

test: install  ## the whole suite but the slow variants, on two cores
	$(BIN)/python -m pytest -q -m 'not slow' -n 2 --dist loadfile --no-loadscope-reorder

test-unit: install  ## the tests that start no process and open no socket (under a minute)
	$(BIN)/python -m pytest -q --unit -n 2 --dist worksteal

test-slow: install  ## the slow variants: every kill, every fault, every seed (half an hour; PART=2/3 is the second third)
	$(BIN)/python -m pytest -q -m slow -n 2 --dist loadfile --no-loadscope-reorder --slow-part $(PART)

test-all: test test-slow  ## the whole suite

bench-defaults: install  ## compare plans on the digits task, three seeds (about an hour); writes docs/algorithm-defaults.md
	$(BIN)/python benchmarks/defaults.py

bench-accuracy: install  ## every preset at equal client passes on Fashion-MNIST, three seeds (under 150 minutes; QUICK=1 under 10); writes docs/results/accuracy.md
	$(BIN)/python benchmarks/accuracy.py

bench-backpressure: install  ## what 200 greedy clients do to the server's memory, and what its windows cost in throughput (about 2 minutes)
	$(BIN)/python benchmarks/backpressure.py
	$(BIN)/python benchmarks/stream_throughput.py

bench-client: install  ## a client's step on ResNet-18's front: memory, seconds, bytes, beside plain PyTorch (under 8 minutes; QUICK=1 under 4); writes docs/results/client.md
	$(BIN)/python benchmarks/client.py

bench-deep: install  ## fronts that lose much when frozen: forward passes, local losses, exact gradients (about an hour); writes docs/results/deep-front.md
	$(BIN)/python benchmarks/deep_front.py

bench-ingest: install  ## what receiving costs beside a bare gRPC server: 50, 200 and 1,000 clients, large uploads (about 6 minutes); writes docs/results/ingest.md
	$(BIN)/python benchmarks/ingest.py

bench-gpt2: install  ## fronts of GPT-2-small and -medium: client memory beside plain PyTorch (about 15 minutes; QUICK=1 under 5); writes docs/results/gpt2.md
	$(BIN)/python benchmarks/gpt2.py

bench-minilm: install  ## MiniLM with LoRA on tweets: heron, its rivals and a frozen front, three seeds (about an hour; QUICK=1 minutes); writes docs/results/minilm.md
	$(BIN)/python benchmarks/minilm.py

bench-radius: install  ## how true finite differences are by radius on every model that ships (minutes); writes docs/results/smoothing-radius.md
	$(BIN)/python benchmarks/smoothing_radius.py

bench-step: install  ## what a step of heron on digits costs beside cse-fsl, and a simulation beside AGAINST=/path/to/another/checkout (minutes)
	$(BIN)/python benchmarks/digits_step.py

bench-start: install  ## how long a warm server takes until it listens, beside AGAINST=/path/to/another/checkout (about 15 minutes)
	$(BIN)/python benchmarks/start.py

reference: install  ## write the pages of options, metrics, errors, exit codes and names of Python under docs/reference/ from the code
	$(BIN)/python -m deploy.reference docs/reference

invariants: install  ## write into docs/invariants.md which tests are marked as proofs of each statement
	$(BIN)/python -m deploy.invariants

docs: install  ## build the pages under docs/ into site/, warnings being errors
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

client-binary:  ## heron-client for this architecture without Python, as a tarball and as one file, in dist/ (minutes)
	$(PYTHON) deploy/binary/build.py

client-binary-wheels:  ## ask the registry whether every dependency of the client has wheels for x86_64 and aarch64
	$(PYTHON) deploy/binary/wheels.py

wheel:  ## source distribution and wheel in dist/, from the files that git knows, with a look at what is in them
	$(PYTHON) deploy/release/wheel.py

wheel-check:  ## the suite against the built wheel, away from the checkout, in a fresh environment (ARGS= goes to pytest)
	$(PYTHON) deploy/release/wheel_check.py $(ARGS)

test-versions: install  ## the tests that touch the wire with the lowest and the newest supported grpcio and protobuf (about 10 minutes)
	$(BIN)/python deploy/release/wire_versions.py $(ARGS)

sbom:  ## software bills of materials of the client's and of the server's environment in dist/, as CycloneDX JSON
	$(PYTHON) deploy/release/sbom.py

bench-binary: install client-binary  ## size, start and memory of the binaries, the installed client and plain PyTorch; writes docs/results/binary.md
	$(BIN)/python benchmarks/binary.py

lint: install  ## ruff and mypy --strict
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: install  ## let ruff fix what it can
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

proto: install  ## generate the stubs from the contracts, by the compiler that constraints.txt pins
	$(BIN)/python deploy/release/stubs.py

dashboards: install  ## make the Grafana dashboard and the alert rules from the metrics that the code registers
	$(BIN)/python -m deploy.watching deploy

clean:  ## remove what was built; .venv and runs stay
	rm -rf build dist site *.egg-info .pytest_cache .mypy_cache .ruff_cache

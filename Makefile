# `make demo` and `make test` are all a fresh machine needs: both build the virtual environment.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
DONE := $(VENV)/.installed
TOGETHER := --numprocesses 2 --dist loadscope --no-loadscope-reorder

.PHONY: install demo test quick test-slow test-lowest chaos families chaos-train bench-train bench-packing bench-data bench-large bench-resume bench-overhead bench-gateway bench-gpu soak check up down clean help
.DEFAULT_GOAL := help

help:  ## show this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 16

install: $(DONE)  ## make the virtual environment with the tested versions

$(DONE): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Anneal needs Python 3.11 or newer: make PYTHON=python3.11 ...")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt torch
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[test]'
	touch $(DONE)

demo: $(DONE)  ## the whole job on the built-in data: train, evaluate, register, deploy, ask
	$(BIN)/python -m deployments.examples.demo

test: $(DONE)  ## ruff, types, the quick tests and one slow one of each kind
	$(MAKE) --jobs 2 check quick

quick: $(DONE)
	$(BIN)/pytest $(TOGETHER) -m "(smoke or not slow) and not chaos and not gpu"

test-slow: $(DONE)  ## the other slow tests that this machine can run
	$(BIN)/pytest $(TOGETHER) -m "slow and not smoke and not chaos and not gpu"

test-lowest: .venv-lowest/.installed  ## the quick tests with the lowest versions that pyproject.toml allows
	.venv-lowest/bin/pytest $(TOGETHER) -m "not slow and not chaos and not gpu"

.venv-lowest/.installed: pyproject.toml constraints-lowest.txt
	$(PYTHON) -m venv .venv-lowest
	.venv-lowest/bin/pip install --quiet --disable-pip-version-check --constraint constraints-lowest.txt torch
	.venv-lowest/bin/pip install --quiet --disable-pip-version-check --constraint constraints-lowest.txt --editable '.[test]'
	touch $@

chaos: $(DONE)  ## the slower tests: a kill at every named point of the pipeline, the stack by itself
	$(BIN)/pytest -m chaos

families: $(DONE)  ## tiny models of every causal language model in transformers; fills docs/families.md
	$(BIN)/pytest -m "chaos or not chaos" tests/tasks/distributed/test_families.py
	$(BIN)/python -m tests.support.family_table

chaos-train: $(DONE)  ## every kill of the trainer: named points x ranks x methods x parallelism
	$(BIN)/pytest -m "chaos or not chaos" tests/invariants/test_resume.py

bench-train: $(VENV)/.bench  ## tokens a second against TRL and transformers' Trainer
	$(BIN)/python -m tests.benchmarks.train

bench-packing: $(VENV)/.bench  ## how full the rows are, and how fast, against TRL
	$(BIN)/python -m tests.benchmarks.packing

bench-data: $(VENV)/.bench  ## ingest, validate and pack against s3fs, orjson, encode_batch, TRL; OPTIONS="--sizes 1 5 10"
	$(BIN)/python -m tests.benchmarks.preparing $(OPTIONS)

bench-large: $(VENV)/.bench  ## trainings on 1 and 10 GB of rows, with their memory over time; OPTIONS="--plot memory.svg"
	$(BIN)/python -m tests.benchmarks.large $(OPTIONS)

bench-resume: $(VENV)/.bench  ## what a checkpoint costs, and the time from a kill to the next step
	$(BIN)/python -m tests.benchmarks.resume

bench-overhead: $(DONE)  ## a training in Prefect against the same functions in a script; the idle stack; OPTIONS="--idle"
	$(BIN)/python -m tests.benchmarks.overhead $(OPTIONS)

bench-gateway: $(DONE)  ## the gateway's requests against a bare app's; lists and uploads, with their memory; OPTIONS="--upload-mb 100"
	$(BIN)/python -m tests.benchmarks.gateway $(OPTIONS)

bench-gpu: $(VENV)/.bench  ## LoRA on a 7B shape, full on 1.1B, the guide's job; OPTIONS="--part lora --bases FOLDER"
	$(BIN)/python -m tests.benchmarks.gpu $(OPTIONS)

$(VENV)/.bench: $(DONE)
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[bench]'
	touch $(VENV)/.bench

soak: $(DONE)  ## a fault a minute against a long training through the stack; OPTIONS="--minutes 30 --seed 0"
	$(BIN)/python -m tests.benchmarks.soak $(OPTIONS)

check: $(DONE)  ## ruff, types
	$(BIN)/ruff check .
	$(BIN)/mypy

up: $(DONE)  ## start the local stack: Prefect, worker, MLflow, predictor
	$(BIN)/anneal up

down: $(DONE)  ## stop exactly what `make up` started
	$(BIN)/anneal down

clean:  ## remove the virtual environment and caches, not .anneal/
	rm -rf $(VENV) .venv-lowest .mypy_cache .ruff_cache .pytest_cache *.egg-info build

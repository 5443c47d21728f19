# The commands of a newcomer. Each makes .venv first where it is missing or older than the lock.
PYTHON_ENV := .venv/bin
WORKERS ?= 2
ARGS ?=
# where it is set, each of the many processes compiles all that it imports: seconds a process
unexport PYTHONDONTWRITEBYTECODE

.PHONY: help setup demo test check bench kafka docs lock lock-check
.DEFAULT_GOAL := help

help: ## show this
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "make %-11s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: .venv/.complete ## make .venv from requirements.lock and compile the kernel

.venv/.complete: requirements.lock pyproject.toml
	@sh infra/setup.sh

demo: setup ## the whole job by itself: tape to forecasts over HTTP; ARGS="--tape FILE" for your own
	@$(PYTHON_ENV)/volspike demo $(ARGS)

test: setup ## all tests but slow, bench and chaos; ARGS="-k name" for some
	@$(PYTHON_ENV)/pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder -m "not slow and not bench and not chaos" $(ARGS)

check: setup ## ruff, mypy --strict, import directions, docs, doctests
	$(PYTHON_ENV)/ruff check .
	$(PYTHON_ENV)/mypy
	$(PYTHON_ENV)/pytest -q tests/unit/test_import_directions.py tests/unit/test_docs.py
	$(PYTHON_ENV)/pytest -q --doctest-modules feature_repo ingestion training serving monitoring infra

bench: setup ## every measured target; ARGS="replay" for one
	@$(PYTHON_ENV)/volspike bench $(if $(ARGS),$(ARGS),all)

kafka: setup ## run Apache Kafka on loopback (needs Java 17 and Maven); ARGS="--port 9192" for another port
	@$(PYTHON_ENV)/python -m infra.kafka_server $(ARGS)

docs: setup ## generate docs/feature_spec.md, .env.example and config.yaml.example
	@$(PYTHON_ENV)/python -m infra.docs

lock: ## resolve requirements.lock anew from pyproject.toml; ARGS="--upgrade" for newer versions
	@sh infra/setup.sh lock $(ARGS)

lock-check: ## that every pin has a wheel for every promised platform
	@sh infra/setup.sh lock-check

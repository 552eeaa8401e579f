# Everything runs in .venv; the first target that needs it makes it (a few minutes, once).
PYTHON ?= $(shell command -v python3.11 || command -v python3)
BIN := .venv/bin
READY := .venv/.ready
PEERS := benchmarks/data/peers

PEER_PYTHON := benchmarks/data/rs-embed-peer/bin/python
PYTHON312 ?= $(shell command -v python3.13 || command -v python3.12)

.PHONY: demo test lint docs fuzz soak bench bench-peers bench-gpu train constraints clean

demo: $(READY)  ## The main job on real Sentinel-2 imagery, with a picture
	$(BIN)/rs-embed demo --out demo-output

test: $(READY)  ## All tests
	$(BIN)/python -m pytest -n 2

lint: $(READY)  ## Style, types, layers
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

docs: $(READY)  ## The documentation as a site in site/, its links checked
	@$(BIN)/python -m pip install --quiet --no-compile --disable-pip-version-check --constraint constraints.txt --editable '.[docs]'
	$(BIN)/python docs/build.py

fuzz: $(READY)  ## Hostile files of every kind for some minutes: SECONDS=30 for each target
	$(BIN)/python -m fuzz --seconds $(or $(SECONDS),30)

soak: $(READY)  ## One dataset under kills, faults and a full disk, compared with a calm run: MINUTES=30
	$(BIN)/python -m soak --minutes $(or $(MINUTES),30)

bench: $(READY)  ## Benchmarks against what a user would write otherwise (minutes)
	@test -x $(PEERS)/bin/stackstac-is-there || { $(PYTHON) -m venv $(PEERS) && \
	  $(PEERS)/bin/python -m pip install --quiet --disable-pip-version-check 'stackstac==0.5.1' 'pandas<3' && \
	  touch $(PEERS)/bin/stackstac-is-there; }
	$(BIN)/python -m benchmarks

bench-peers: $(READY)  ## Against rs-embed 0.3.1, open_clip, transformers in an environment of their own (some GB, 10 minutes)
	@test -x $(PEER_PYTHON) || { $(PYTHON312) -m venv benchmarks/data/rs-embed-peer && \
	  $(PEER_PYTHON) -m pip install --quiet --disable-pip-version-check 'torch==2.13.0' && \
	  $(PEER_PYTHON) -m pip install --quiet --disable-pip-version-check 'rs-embed==0.3.1' 'torch==2.13.0'; }
	$(BIN)/python -m benchmarks.bench_peers

bench-gpu: $(READY)  ## The networks on CUDA: images/s, share of the card's product, open_clip
	$(BIN)/python -m benchmarks.bench_gpu

train: $(READY)  ## Train clip_eurosat_s2rgb from scratch: DATA=eurosat_rgb.tar (100 minutes on 2 cores); goes on where it stopped
	$(BIN)/python -m training.train_clip_eurosat $(if $(DATA),--data $(DATA))

constraints: $(READY)  ## Pin what is installed now
	{ head -n 1 constraints.txt; $(BIN)/pip freeze --exclude-editable | sed 's/+cpu$$//'; } > constraints.new
	mv constraints.new constraints.txt

clean:
	rm -rf .venv demo-output

$(READY): pyproject.toml constraints.txt hatch_build.py web/package-lock.json
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Python 3.11 or newer is needed; set PYTHON=…"; exit 1; }
	@echo "Setting up .venv (a few minutes, once) …"
	@$(PYTHON) -m venv .venv
	@# Modules are compiled when they are used: to compile all of them takes two minutes.
	@$(BIN)/python -m pip install --quiet --no-compile --disable-pip-version-check --constraint constraints.txt --editable '.[all,test]'
	@touch $(READY)

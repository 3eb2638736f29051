# One environment for everything: built on the first call, rebuilt only when its inputs change.
PYTHON ?= python3
BIN := .venv/bin
# A test run starts hundreds of processes: where bytecode is not kept, each compiles all its imports anew.
export PYTHONDONTWRITEBYTECODE :=
CONSTRAINTS := --constraint constraints.txt

.PHONY: test demo demo-train lint clean

.venv/ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	@# uv installs about five times faster than pip; where it cannot be had, pip does the same.
	if $(BIN)/pip install --quiet $(CONSTRAINTS) uv; \
	then VIRTUAL_ENV=.venv $(BIN)/uv pip install --quiet $(CONSTRAINTS) --editable '.[test]'; \
	else $(BIN)/pip install $(CONSTRAINTS) --editable '.[test]'; fi
	@# A referee of the tests. By itself it brings the OpenCV that needs a display in place of the one that is here.
	$(BIN)/pip install --quiet --no-deps $(CONSTRAINTS) quantus
	touch .venv/ready

lint: .venv/ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

test: lint
	$(BIN)/python -m pytest -n 2 --dist loadfile

demo: .venv/ready
	$(BIN)/floodlit run examples/demo.toml
	$(BIN)/floodlit run examples/reviews.toml

# The demo's P-TAME head once more, from nothing; copy it to examples/weights to have the demo use it.
demo-train: .venv/ready
	$(BIN)/python examples/digits.py train small
	rm -rf runs/digits-ptame
	$(BIN)/floodlit train examples/digits-ptame.toml

clean:
	rm -rf .venv runs

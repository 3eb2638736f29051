# One environment serves everything. It is built on the first call, and again when its inputs change.
PYTHON ?= python3
BIN := .venv/bin
# A test run starts hundreds of processes. Without stored bytecode each of them would compile all its imports.
export PYTHONDONTWRITEBYTECODE :=
CONSTRAINTS := --constraint constraints.txt

.PHONY: test demo demo-train lint clean

.venv/ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	@# uv installs about five times faster than pip. Where uv is missing, pip installs the same.
	if $(BIN)/pip install --quiet $(CONSTRAINTS) uv; \
	then VIRTUAL_ENV=.venv $(BIN)/uv pip install --quiet $(CONSTRAINTS) --editable '.[test]'; \
	else $(BIN)/pip install $(CONSTRAINTS) --editable '.[test]'; fi
	@# Quantus checks numbers in the tests. With its dependencies it would replace OpenCV by a build that needs a display.
	$(BIN)/pip install --quiet --no-deps $(CONSTRAINTS) quantus
	touch .venv/ready

lint: .venv/ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# By default the files with the most tests come first, and the few slow tests of whole jobs last, with which one
# process is then left alone.
test: lint
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

demo: .venv/ready
	$(BIN)/floodlit run examples/demo.toml
	$(BIN)/floodlit run examples/reviews.toml

# Trains the demo's P-TAME head again from nothing. Copy it to examples/weights to let the demo use it.
demo-train: .venv/ready
	$(BIN)/python examples/digits.py train small
	rm -rf runs/digits-ptame
	$(BIN)/floodlit train examples/digits-ptame.toml

clean:
	rm -rf .venv runs

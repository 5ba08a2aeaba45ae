# make run        animate the shipped example through the graph, on any machine
# make serve      keep the graph running
# make test       all tests but the slow ones
# make test-slow  the slow ones
# make check      style and types
PYTHON ?= python3
BIN := .venv/bin
INSTALLED := .venv/.installed

.PHONY: run serve test test-slow check clean

$(INSTALLED): pyproject.toml requirements.lock
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --constraint requirements.lock --editable '.[test]'
	touch $@

run: $(INSTALLED)
	$(BIN)/flashhead-serve demo --image examples/portrait.png --audio examples/speech.wav --out out/demo.webm

serve: $(INSTALLED)
	$(BIN)/flashhead-serve serve

test: $(INSTALLED) check
	$(BIN)/python -m pytest -m "not slow"

test-slow: $(INSTALLED)
	$(BIN)/python -m pytest -m slow

check: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

clean:
	rm -rf .venv out

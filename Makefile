# make run        animate the shipped example through the graph, on any machine
# make serve      keep the graph running
# make test       all tests but the slow ones
# make test-slow  the slow ones
# make check      style and types
# make image      build the container image IMAGE (cluster/Dockerfile); make push: push it
# make manifests  copy the serve configs into cluster/overlays
PYTHON ?= python3
BIN := .venv/bin
IMAGE ?= flashhead-serve:0.1.0
BUILD_ARGS ?=
INSTALLED := .venv/.installed

.PHONY: run serve test test-slow check image push manifests clean

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

image:
	docker build --file cluster/Dockerfile $(BUILD_ARGS) --tag $(IMAGE) .

push:
	docker push $(IMAGE)

manifests:
	cp configs/serve.4090.yaml cluster/overlays/single-4090/serve.yaml
	cp configs/serve.fleet.yaml cluster/overlays/fleet/serve.yaml
	cp configs/serve.cpu.yaml cluster/overlays/cpu-demo/serve.yaml

clean:
	rm -rf .venv out

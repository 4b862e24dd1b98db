# Everything a newcomer needs: `make demo` and `make test` install what they use into .venv.
PYTHON ?= python3
BENCH ?= unsir_cifar10
SIZE ?= quick
VENV := .venv
RUN := $(VENV)/bin
# A core a file, and a thread a core: threads that share tiny sums only wait.
PYTEST := OMP_NUM_THREADS=$${OMP_NUM_THREADS:-1} $(RUN)/python -m pytest -n auto --dist loadfile

.PHONY: demo test test-slow lint docs bench install clean

demo: $(VENV)/.installed
	$(RUN)/expunge demo --output expunge-demo

test: $(VENV)/.installed-dev
	$(PYTEST) -m "not slow"

test-slow: $(VENV)/.installed-dev
	$(PYTEST) -m slow

lint: $(VENV)/.installed-dev
	$(RUN)/ruff check .
	$(RUN)/ruff format --check .
	$(RUN)/pyright
	$(RUN)/lint-imports

docs: $(VENV)/.installed-dev
	NO_MKDOCS_2_WARNING=1 $(RUN)/mkdocs build --strict --quiet

bench: $(VENV)/.installed-dev
	$(RUN)/python benchmarks/$(BENCH).py --size $(SIZE)

install: $(VENV)/.installed-dev

clean:
	rm -rf $(VENV) site expunge-demo expunge-demo-hospital

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)
	$(RUN)/python -m pip install --quiet --upgrade "pip>=25.1"

$(VENV)/.installed: $(VENV)/bin/python pyproject.toml constraints.txt
	$(RUN)/python -m pip install --quiet --constraint constraints.txt --editable .
	touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	$(RUN)/python -m pip install --quiet --constraint constraints.txt --editable ".[fairness,images,influence,language,ray]" --group dev
	touch $@

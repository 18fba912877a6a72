# Each target works from a bare clone, with Python 3.11 or later: it makes .venv and installs there.
PYTHON ?= python3
BIN := .venv/bin
# The median case of drift: see .docs/median.py.
PROMPT ?= a big cyan circle moving up gently over a gray background, fixed camera

.PHONY: demo serve pictures train-gpu test newest lint notebooks docs release clean

# 30 seconds of Self Forcing on the embedded model that drifts, plain and with TokenTrim, both with
# the past as it was trained and as Rolling Sink keeps it, which the laboratory found best
# (.docs/pages/policies.md): demo/compare.mp4, .png and .json, and each run's own video. What an
# earlier one wrote goes.
demo: .venv/.installed
	rm -rf demo
	$(BIN)/tt-jax compare "$(PROMPT)" --model shapes-young --seconds 30 --out demo \
		--cache window --cache rolling-sink

# The README's pictures, from the demo and two other comparisons.
POLICIES := window infinity-rope long-live mem-rope ema-sink rolling-sink relax-forcing deep-forcing \
	tether-cache fade-mem
pictures: demo
	$(BIN)/tt-jax compare "a small red circle moving to the right slowly on white" --seconds 30 \
		--out demo/small
	$(BIN)/tt-jax compare "$(PROMPT)" --model shapes-young --seconds 60 --presets plain \
		--out demo/policies $(foreach name,$(POLICIES),--cache $(name))
	$(BIN)/python .docs/pictures.py

# A page to watch and steer an endless video of the embedded model: http://127.0.0.1:8000
serve: .venv/.serve
	$(BIN)/tt-jax serve --cache infinity-rope --cache window

# Trains the embedded model for so many MINUTES on whatever JAX finds, a GPU best; goes on where an
# earlier call stopped. The models are training/model and training/young.
MINUTES ?= 10
train-gpu: .venv/.installed
	$(BIN)/python -m tt_jax.shapes.training training --minutes $(MINUTES)

# All tests but those of true-size models; a file stays in one process, which compiles once, and
# the longest come first (tests/conftest.py).
test: .venv/.tested
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder -m "not huge" --durations 30

# The quick tests that need no originals (of others, what needs torch skips), and all of other
# people's JAX, on the newest JAX that PYTHON can have.
newest:
	test -d .venv-newest || $(PYTHON) -m venv .venv-newest
	.venv-newest/bin/python -m pip install --quiet --upgrade --upgrade-strategy eager --editable ".[test]"
	.venv-newest/bin/python -c "import jax; print('JAX', jax.__version__)"
	.venv-newest/bin/python -m pytest -n 2 --dist loadfile -m "not huge and not parity and not slow"
	.venv-newest/bin/python -m pytest -n 2 -m slow tests/test_other_jax.py tests/test_other_mesh.py

lint: .venv/.tested
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	PYRIGHT_PYTHON_IGNORE_WARNINGS=1 $(BIN)/pyright --pythonpath $(BIN)/python

# On the embedded model, whatever the machine has.
notebooks: .venv/.notebooks
	JAX_PLATFORMS=cpu $(BIN)/python -m pytest --nbmake --nbmake-timeout=600 notebooks

# The API page and its neighbours, .site/index.html.
docs: .venv/.docs
	$(BIN)/mkdocs build --strict --quiet -f .docs/mkdocs.yml

# dist/*.tar.gz and dist/*.whl, the wheel tried alone in an empty environment.
release:
	PYTHON=$(PYTHON) .ci/release

clean:
	rm -rf .venv .venv-newest demo dist .site

$(BIN)/python:
	$(PYTHON) -m venv .venv

.venv/.installed: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet --editable .
	touch $@

.venv/.tested: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet --editable ".[test,parity]"
	touch $@ .venv/.installed

.venv/.notebooks .venv/.docs .venv/.serve: .venv/.%: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet --editable ".[$*]"
	touch $@

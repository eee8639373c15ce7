# Two commands do everything: `make demo` runs the main job, `make test` passes the tests.
# Both make the virtual environment themselves. `make VENV=/some/where test` puts it elsewhere; a second run reuses it.
VENV   ?= .venv
PYTHON ?= python3
PY      = $(VENV)/bin/python
READY   = $(VENV)/.visionlab-ready
JOBS   ?= 2
export NO_ALBUMENTATIONS_UPDATE = 1
export MPLBACKEND ?= Agg
# Bytecode is written where something is first imported, and kept, whatever the environment says: pip would compile all of its packages, most of which are never looked at.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: help demo test wheel docs bench notebooks prepare hooks system clean

help: ## this list
	@grep -hE '^[a-z]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

# What `import cv2` needs outside Python: installed where we may, else named in one line.
system:
	@[ "$$(uname -s)" = Linux ] || exit 0; missing=""; \
	for lib in libGL.so.1 libglib-2.0.so.0; do \
	  ldconfig -p 2>/dev/null | grep -q "$$lib" || /sbin/ldconfig -p 2>/dev/null | grep -q "$$lib" || missing="$$missing $$lib"; done; \
	$(PYTHON) -c 'import venv, ensurepip' 2>/dev/null || missing="$$missing python3-venv"; \
	[ -z "$$missing" ] || sh .ci/system-libraries "$$missing"

# uv unpacks the packages, some GB, several times as fast as pip. Where it cannot, or pip has been given an index of its own, pip does it.
$(READY): settings.ini setup.py | system
	@test -x $(PY) || $(PYTHON) -m venv $(VENV)
	@echo "installing visionlab and what it needs into $(VENV) (a minute or a few, the first time)"
	@{ ! $(PY) -m pip config list | grep -q '[.]index-url=' && $(PY) -m pip install -q --disable-pip-version-check uv && $(PY) -m uv pip install -q --python $(PY) -e '.[dev]'; } \
	  || $(PY) -m pip install -q --no-compile --disable-pip-version-check -e '.[dev]'
	@touch $@

demo: $(READY) ## train, evaluate and show PAN on the embedded toy set, in about three minutes
	@$(VENV)/bin/visionlab demo pan

test: $(READY) ## all tests: notebooks, library, house rules, site
	@$(PY) -m pytest -q -n $(JOBS) --dist loadgroup tests

wheel: $(READY) ## the wheel in an environment of its own: imports, and every system trains and predicts (network, minutes)
	@$(PY) -m pytest -q tests/wheel.py

bench: $(READY) ## speed side by side, printed as a table (single thread)
	@$(PY) -m tests.bench

docs: $(READY) ## build the site from the notebooks into docs/, and README.md from the home page
	@$(PY) -W ignore -c "import sys; sys.path.insert(0, 'nbs/_site'); import build; build.main('docs')"

notebooks: $(READY) ## restart and run all notebooks, save their outputs
	@for nb in $$(find nbs -name '*.ipynb' -not -path '*/.*' -not -path '*/_*' | sort); do \
	  echo $$nb; $(VENV)/bin/jupyter-nbconvert --to notebook --execute --inplace --log-level ERROR $$nb || exit 1; done
	@$(VENV)/bin/nbdev_clean

prepare: $(READY) ## before a commit: clean the notebooks, export the library
	@$(VENV)/bin/nbdev_clean
	@$(VENV)/bin/nbdev_export

hooks: $(READY) ## git hooks that keep notebooks clean and the library in step
	@git config core.hooksPath .githooks
	@echo "git now runs .githooks/pre-commit"

clean: ## remove what can be made again, the virtual environment excepted
	@rm -rf build dist *.egg-info .pytest_cache _proc site

# The commands: make book, make test, make check. Each sets up what it needs in .venv.

PYTHON  ?= python3
SCALE   ?= book
JOBS    ?= $(shell getconf _NPROCESSORS_ONLN 2>/dev/null || echo 1)

BIN     := .venv/bin
PIP     := $(BIN)/python -m pip --disable-pip-version-check -q
HTML    := _build/html
VENDOR  := book/static/vendor/.complete
AXE     := _build/axe/.complete
KERNELS := _build/compiled/.complete
BOOK     = $(shell find book notebooks results ts_helpers _config.yml _toc.yml README.md -type f \
            -not -path '*/.*' -not -path '*/__pycache__/*' 2>/dev/null)

.PHONY: help book readme test check determinism browser lint lab bench clean
.DELETE_ON_ERROR:

help:
	@echo "make book    execute the notebooks that are out of date, and build $(HTML)  [SCALE=smoke|book|paper]"
	@echo "make readme  write the README's table of verdicts anew, from the records of the last make book"
	@echo "make test    lint, unit tests, one chapter and its page in a browser"
	@echo "make check   every notebook at smoke scale, strict build, every page in a browser"
	@echo "make lint    the quick part of make test;  make determinism  all chapters twice, once a week"
	@echo "make lab     JupyterLab on the notebooks"
	@echo "make bench   the benchmarks  [BENCH=--quick, --record, or --beside a checkout of an older engine]"
	@echo "make clean   remove what was built; .venv stays"

# --- set-up: pins from constraints.txt, one stamp for each set of packages, each with those of the book
.venv/.%: pyproject.toml constraints.txt tools/preflight.sh
	@sh tools/preflight.sh $(PYTHON)
	@test -x $(BIN)/python || { echo "making .venv"; $(PYTHON) -m venv .venv; }
	@echo "installing packages: $*"
	@$(PIP) install -c constraints.txt -e '.$(patsubst [book],,[$*])'
	@touch .venv/.book $@

$(VENDOR) $(AXE): tools/vendor_assets.py | .venv/.book
	@$(BIN)/python tools/vendor_assets.py $(if $(filter $@,$(AXE)),test,book)

# compiled once, before processes start that would each compile them
$(KERNELS): .venv/.book $(wildcard ts_helpers/engine/*.py) ts_helpers/papers/matsuki2018.py
	@$(BIN)/python -m ts_helpers.engine
	@$(BIN)/python -c "from ts_helpers.papers import matsuki2018; matsuki2018.ready()"
	@touch $@

# --- the book
book: $(KERNELS) $(VENDOR)
	@$(BIN)/python -m ts_helpers.run --scale $(SCALE) --jobs $(JOBS)
	@$(MAKE) --no-print-directory $(HTML)/.complete
	@echo "open $(CURDIR)/$(HTML)/index.html"

$(HTML)/.complete: $(BOOK)
	@rm -rf $(HTML)
	@$(BIN)/python -m ts_helpers.book.pages
	@$(BIN)/jupyter-book build . --all -W -n --keep-going
	@touch $(HTML)/.nojekyll $@

readme: .venv/.book
	@$(BIN)/python -m ts_helpers.book.pages --readme

# --- checks
lint: .venv/.test
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy

browser: $(VENDOR) $(AXE)
	@sh tools/ensure_chromium.sh

test: .venv/.test
	@$(MAKE) --no-print-directory -j2 lint $(KERNELS) browser
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(JOBS) --dist loadfile -m "not book or canary"

check: .venv/.test
	@$(MAKE) --no-print-directory -j2 $(KERNELS) browser
	@$(BIN)/python -m pytest -n $(JOBS) --dist worksteal -m "book and not weekly"

determinism: .venv/.test $(KERNELS)
	@$(BIN)/python -m pytest -m "weekly"

lab: .venv/.lab
	@$(BIN)/jupyter lab --notebook-dir notebooks

bench: .venv/.bench
	@$(BIN)/python benchmarks/run.py $(BENCH)

clean:
	@rm -rf _build book/static/vendor
	@find notebooks -name '*.ipynb' -delete

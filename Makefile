# The two commands: make book, make test. Each sets up what it needs in .venv.

PYTHON ?= python3
SCALE  ?= book
JOBS   ?= $(shell getconf _NPROCESSORS_ONLN 2>/dev/null || echo 1)

BIN    := .venv/bin
PIP    := $(BIN)/python -m pip --disable-pip-version-check -q
HTML   := _build/html
BOOK    = $(shell find book notebooks results ts_helpers _config.yml _toc.yml README.md -type f \
            -not -path '*/.*' -not -path '*/__pycache__/*' 2>/dev/null)

.PHONY: help book readme test lint lab bench clean
.DELETE_ON_ERROR:

help:
	@echo "make book    execute the notebooks that are out of date, and build $(HTML)  [SCALE=smoke|book|paper]"
	@echo "make readme  write the README's table of verdicts anew, from the records of the last make book"
	@echo "make test    lint, unit tests, every notebook at smoke scale, strict build, browser checks"
	@echo "make lab     JupyterLab on the notebooks"
	@echo "make bench   the benchmarks  [BENCH=--quick or --record]"
	@echo "make clean   remove what was built; .venv stays"

# --- set-up: pins from constraints.txt, one stamp for each set of packages
.venv/.book: pyproject.toml constraints.txt tools/preflight.sh
	@sh tools/preflight.sh $(PYTHON)
	@test -x $(BIN)/python || { echo "making .venv"; $(PYTHON) -m venv .venv; }
	@echo "installing the book's packages"
	@$(PIP) install -c constraints.txt -e .
	@touch $@

.venv/.test: .venv/.book
	@echo "installing the tests' packages"
	@$(PIP) install -c constraints.txt -e '.[test]'
	@touch $@

.venv/.lab: .venv/.book
	@echo "installing JupyterLab"
	@$(PIP) install -c constraints.txt -e '.[lab]'
	@touch $@

.venv/.bench: .venv/.book
	@echo "installing JAX, which the benchmarks compare with"
	@$(PIP) install -c constraints.txt -e '.[bench]'
	@touch $@

book/static/vendor/.complete: .venv/.book tools/vendor_assets.py
	@$(BIN)/python tools/vendor_assets.py book

_build/axe/.complete: .venv/.book tools/vendor_assets.py
	@$(BIN)/python tools/vendor_assets.py test

# --- the book
book: .venv/.book book/static/vendor/.complete
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

test: lint book/static/vendor/.complete _build/axe/.complete
	@sh tools/ensure_chromium.sh
	@$(BIN)/python -m pytest

lab: .venv/.lab
	@$(BIN)/jupyter lab --notebook-dir notebooks

bench: .venv/.bench
	@$(BIN)/python benchmarks/run.py $(BENCH)

clean:
	@rm -rf _build book/static/vendor
	@find notebooks -name '*.ipynb' -delete

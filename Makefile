# The commands: make book, make test, make check. Each sets up what it needs in .venv.

PYTHON  ?= python3
SCALE   ?= book
JOBS    ?= $(shell getconf _NPROCESSORS_ONLN 2>/dev/null || echo 1)

BIN     := .venv/bin
HTML    := _build/html
VENDOR  := book/static/vendor/.complete
AXE     := _build/axe/.complete
KERNELS := _build/compiled/.complete
BOOK    := book notebooks results ts_helpers _config.yml _toc.yml README.md
# a reason to make $(1) anew if a file of $(2) is newer; asked of find, since make takes no blank or colon in a name
newer    = $(if $(shell find $(2) -type f -newer $(1) -not -path '*/.*' -not -path '*/__pycache__/*' 2>/dev/null \
            | head -n 1),FORCE)
MOVED   := $(shell test ! -s .venv/.book || test "$$(cat .venv/.book)" -ef . || echo FORCE)
# said to make, PYTHON is that of .venv, or refused
OTHER   := $(if $(filter command,$(origin PYTHON)),$(shell \
            test "$$($(PYTHON) -V 2>&1)" = "$$($(BIN)/python -V 2>&1)" || echo FORCE))

.PHONY: help book pdf zip readme test test-slurm check determinism browser lint sweep lab bench stress clean FORCE
.DELETE_ON_ERROR:

help:
	@echo "make book    execute the notebooks that are out of date, and build $(HTML)  [SCALE=smoke|book|paper]"
	@echo "make pdf     the same on paper, in _build/whole;  make zip  the pages in one file, to read offline"
	@echo "make readme  write the README's findings and verdicts anew, from the records of the last make book"
	@echo "make test    lint, unit tests, one chapter and its page in a browser"
	@echo "make check   every notebook at smoke scale, strict build, every page in a browser"
	@echo "make lint    the quick part of make test;  make determinism  all chapters twice, once a week"
	@echo "make lab     JupyterLab on the notebooks"
	@echo "make sweep   notebooks over parameters, by Snakemake  FILE=workflow/sweeps/tmax.yml  [SWEEP=-n, or --executor slurm]"
	@echo "make test-slurm  a sweep through Slurm, as root on Debian: jobs and daemons killed, ends as it does here?"
	@echo "make bench   the benchmarks  [BENCH=--quick, --record, or --beside a checkout of an older engine]"
	@echo "make stress  processes killed, disks full, hostile input: what is lost?  [STRESS=--quick or --record]"
	@echo "make clean   remove what was built; .venv, downloads, trainings to go on with and what you made stay"

# --- set-up: what pyproject.toml asks for, as pinned; one stamp for each set of packages, each with those of the book
.venv/.%: pyproject.toml constraints.txt hashes.txt tools/preflight.sh tools/install.sh $(MOVED) $(OTHER)
	@sh tools/preflight.sh $(PYTHON) $(OTHER)
	@test -x $(BIN)/python || { echo "making .venv"; $(PYTHON) -m venv .venv; }
	@echo "installing packages: $*"
	@sh tools/install.sh $*
	@for stamp in .venv/.book $@; do pwd > $$stamp; done

$(VENDOR) $(AXE): tools/vendor_assets.py | .venv/.book
	@$(BIN)/python tools/vendor_assets.py $(if $(filter $@,$(AXE)),test,book)

# compiled once, before processes start that would each compile them
$(KERNELS): .venv/.book $(call newer,$(KERNELS),ts_helpers/engine ts_helpers/papers/matsuki2018.py)
	@$(BIN)/python -m ts_helpers.engine
	@$(BIN)/python -c "from ts_helpers.papers import matsuki2018; matsuki2018.ready()"
	@touch $@

# --- the book
book: $(KERNELS) $(VENDOR)
	@$(BIN)/python -m ts_helpers.run --scale $(SCALE) --jobs $(JOBS)
	@$(MAKE) --no-print-directory $(HTML)/.complete
	@echo "open $$PWD/$(HTML)/index.html"

# in a folder beside the old pages, which make way once it is whole; "custom": else it says to open them there
$(HTML)/.complete: $(call newer,$(HTML)/.complete,$(BOOK))
	@rm -rf _build/new && mkdir -p _build/new/$(HTML)
	@touch _build/new/$(HTML)/.nojekyll _build/new/$@ # first: what is edited from now on is newer
	@$(BIN)/python -m ts_helpers.book.pages
	@$(BIN)/jupyter-book build . --path-output _build/new --builder custom --custom-builder html --all -W -n --keep-going
	@rm -rf $(HTML) && mv _build/new/$(HTML) $(HTML) && rm -rf _build/new

pdf: .venv/.test
	@sh tools/ensure_chromium.sh
	@$(MAKE) --no-print-directory book
	@$(BIN)/python tools/whole.py pdf

zip: book
	@$(BIN)/python tools/whole.py zip

readme: .venv/.book
	@$(BIN)/python -m ts_helpers.book.pages --readme

# --- checks
lint: .venv/.test
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/codespell
	@$(BIN)/mypy

browser: $(VENDOR) $(AXE)
	@sh tools/ensure_chromium.sh

test: .venv/.test
	@$(MAKE) --no-print-directory -j2 lint $(KERNELS) browser
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(JOBS) --dist loadfile -m "(not book or canary) and not slurm"

check: .venv/.test
	@$(MAKE) --no-print-directory -j2 $(KERNELS) browser
	@$(BIN)/python -m pytest -n $(JOBS) --dist worksteal -m "book and not weekly"

determinism: .venv/.test $(KERNELS)
	@$(BIN)/python -m pytest -m "weekly"

test-slurm: .venv/.test .venv/.sweep
	@sh tools/ensure_slurm.sh
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -s -m "slurm"

# what was killed left a lock and jobs half done: those run again, and go on from their checkpoints
sweep: .venv/.sweep $(KERNELS)
	@test -f "$(FILE)" || { echo "make sweep needs FILE, one of:" workflow/sweeps/*.yml >&2; exit 2; }
	@$(BIN)/snakemake -s workflow/Snakefile --configfile "$(FILE)" $(if $(findstring --executor,$(SWEEP)),,--cores $(JOBS)) \
	    --nolock --rerun-incomplete --keep-going --quiet rules $(SWEEP)

lab: .venv/.lab
	@$(BIN)/jupyter lab --notebook-dir notebooks

bench: .venv/.bench
	@$(BIN)/python benchmarks/run.py $(BENCH)

stress: .venv/.test $(KERNELS)
	@$(BIN)/python benchmarks/stress $(STRESS)

clean:
	@test ! -e .venv/.book || $(BIN)/python -c "from ts_helpers.book.run import clean; clean()"
	@rm -rf book/static/vendor \
	    $(addprefix _build/,axe benchmark.json compiled costs html jupyter_execute new pages page_table.txt smoke whole .doctrees)
	@for name in results.nc claims.json provenance.json; do \
	    find _build/records -type f \( -name $$name -o -name ".*.$$name" \) -delete 2>/dev/null; done; \
	    find _build -type d -empty -delete 2>/dev/null; true

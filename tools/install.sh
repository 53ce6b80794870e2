#!/bin/sh
# Installs into .venv what pyproject.toml asks for, and the project itself: in the versions of constraints.txt, and no
# file whose hash is not in hashes.txt. Usage: install.sh book, or the name of an extra for its packages, too.
set -e
pip() { .venv/bin/python -m pip --disable-pip-version-check -q "$@"; }

# first pip: those before 26.1 take no hashes from constraints; and what packages are built with
sed -nE '/^(pip|setuptools)==/,/[^\\]$/p' hashes.txt | pip install --require-hashes --only-binary :all: -r /dev/stdin

# PyTorch's build for CPUs alone, where pip finds one, and no other is there already
cpu=$(sed -n 's/^torch==[0-9.]*/&+cpu/p' constraints.txt)
pip show torch >/dev/null 2>&1 || ! pip install --dry-run --no-deps "$cpu" >/dev/null 2>&1 || torch=$cpu

wanted=$(.venv/bin/python -c "
import sys, tomllib
asked = tomllib.load(open('pyproject.toml', 'rb'))
extras = {'book': []} | asked['project']['optional-dependencies']
print(*asked['build-system']['requires'], *asked['project']['dependencies'], *extras[sys.argv[1]], sep='\n')" "$1")
printf '%s\n' "$wanted" $torch | pip install --require-hashes --no-build-isolation -c hashes.txt -r /dev/stdin
PYTHONWARNINGS=ignore pip install --no-deps --no-build-isolation -e .

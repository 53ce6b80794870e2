#!/bin/sh
# Pins what pyproject.toml asks for: constraints.txt has the versions, the same for every Python and platform if there
# are such; hashes.txt the files of each. What is pinned stays, but --upgrade raises all, --upgrade-package NAME one.
# Needs uv: pip install uv.
set -e
compile() { uv pip compile -q --no-annotate --custom-compile-command "sh tools/pins.sh" "$@"; }

# pip too: those before 26.1 take no hashes from constraints
echo "pip>=26.1" | compile --universal --fork-strategy fewest --all-extras "$@" \
    pyproject.toml - -o constraints.txt >/dev/null

built="--no-binary connection-pool --no-binary immutables" # Snakemake needs them: no wheels, or none for 3.14
export MACOSX_DEPLOYMENT_TARGET=14.0 # the oldest that PyTorch has wheels for
for python in 3.11 3.12 3.13 3.14; do
    for platform in x86_64-manylinux_2_28 aarch64-manylinux_2_28 aarch64-apple-darwin; do
        compile --all-extras --only-binary :all: $built --python-version $python --python-platform $platform \
            -c constraints.txt pyproject.toml >/dev/null || { echo "no wheels for $python on $platform" >&2; exit 1; }
    done
done

# PyTorch's own builds for CPUs are other files than those of the same version elsewhere
cpu=$(grep -o "^torch==[0-9.]*" constraints.txt | compile --no-header --no-deps --generate-hashes - \
    --default-index "${PYTORCH_CPU:-https://download.pytorch.org/whl/cpu}" | sed -n 's/ *--hash=\([^ ]*\).*/\1/p')
test -n "$cpu"
compile --universal --no-deps --generate-hashes constraints.txt | awk -v cpu="$cpu" '{ print }
    /^torch==/ { n = split(cpu, hashes); for (i = 1; i <= n; i++) print "    --hash=" hashes[i] " \\" }' >hashes.txt

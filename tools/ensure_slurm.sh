#!/bin/sh
# Makes sure that make test-slurm finds Slurm and may run its daemons; installs Debian's packages.
have() { command -v slurmctld >/dev/null 2>&1 && command -v slurmd >/dev/null 2>&1 && command -v munged >/dev/null 2>&1; }

if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null 2>&1; then
    echo "make test-slurm must be run as root, on Debian: it installs Slurm and runs its daemons. A container will do." >&2
    exit 1
fi
have && exit 0
echo "installing Slurm for its test"
apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends \
    slurmctld slurmd slurm-client munge >/dev/null
have || { echo "make test-slurm needs Debian's slurmctld, slurmd, slurm-client and munge; apt-get failed." >&2; exit 1; }

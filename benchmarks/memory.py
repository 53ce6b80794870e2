"""How much memory a step takes at its peak, measured in a process of its own."""

import sys
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from functools import partial
from multiprocessing import get_context
from pathlib import Path

from ways import WAYS
from workloads import WORKLOADS

STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")  # Linux alone tells, and forgets, a peak


def _status(name: str) -> int:
    """Return a number of this process's status, in bytes."""
    [line] = [line for line in STATUS.read_text().splitlines() if line.startswith(f"{name}:")]
    return 1024 * int(line.split()[1])


def _peak(workload: str, way: str, networks: int) -> int:
    """Return the bytes that a step takes at its peak, beyond the networks and their data."""
    work = WORKLOADS[workload]
    WAYS[way](replace(work, networks=1)).train(1)  # loads and compiles what there is to be loaded
    trained = WAYS[way](replace(work, networks=networks))
    CLEAR.write_text("5")
    before = _status("VmRSS")
    trained.train(1)
    return _status("VmHWM") - before


def peaks(workload: str, way: str, networks: list[int]) -> dict[str, list[int]]:
    """Return the bytes of a step at its peak, for each number of networks; nothing where they cannot be had."""
    if not sys.platform.startswith("linux"):
        return {}
    with ProcessPoolExecutor(1, get_context("spawn"), max_tasks_per_child=1) as pool:  # for each a new one
        return {"networks": networks, "bytes": list(pool.map(partial(_peak, workload, way), networks))}

"""Put the book under stress: runs are killed and starved, functions are called with what they were not made for.

    python benchmarks/stress [--quick] [--record]

It prints what was tried, how often, and what went wrong; `--record` keeps the figures below results/, for the book.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import inputs
import kills

from ts_helpers.book.paths import RESULTS, ROOT

RECORD = RESULTS / "stress.json"


def main() -> int:
    """Run everything; return 1 if anything was lost or crashed."""
    parser = argparse.ArgumentParser(prog="python benchmarks/stress", description=__doc__.split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="a sample, in two minutes; else a quarter of an hour")
    parser.add_argument("--record", action="store_true", help=f"write the figures to {RECORD.relative_to(ROOT)}")
    options = parser.parse_args()
    start, rows = time.monotonic(), inputs.run(options.quick)
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor((os.cpu_count() or 1) + 1) as pool:
        tried, bad = Counter[str](), Counter[str]()
        for what, done in [(what, pool.submit(task)) for what, task in kills.tasks(Path(folder), options.quick)]:
            times, wrong = done.result()
            tried[what] += times
            bad[what] += len(wrong)
            print(*(f"LOST  {what}: {each}" for each in wrong), sep="\n", end="\n" * bool(wrong), flush=True)
        rows += [{"what": what, "tried": tried[what], "bad": bad[what], "of": "lost"} for what in +tried]
    for row in rows:
        print(f"{row['what']:<50} {row['tried']:>7}   {row['of']}: {row['bad']}")
    print(f"{time.monotonic() - start:.0f} s")
    if options.record:
        git = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True)
        RECORD.write_text(json.dumps({"commit": git.stdout.strip() or None, "rows": rows}, indent=1) + "\n")
    return int(any(row["bad"] for row in rows))


if __name__ == "__main__":
    sys.exit(main())

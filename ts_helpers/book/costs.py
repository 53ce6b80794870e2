"""What a run will take on this device, in time and memory: from a few timed steps of each of its trainings."""

import json
import os
import tempfile
import time
from pathlib import Path

import papermill
from nbclient import NotebookClient
from nbformat.v4 import new_code_cell

from ts_helpers.book.inline import expand
from ts_helpers.book.paths import RESULTS
from ts_helpers.book.run import KERNEL, Job

PEAK = "import resource; print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)"  # KiB, but bytes on macOS


def rehearse(job: Job) -> str:
    """Run a notebook with a few steps of each training, note what the whole would take; return "", as `execute` does.

    Trainings that stop early are taken to go on to their end.
    """
    start = time.perf_counter()
    notebook = papermill.execute_notebook(
        expand(job.notebook), None, job.parameters, kernel_name=KERNEL, language="python", prepare_only=True,
        progress_bar=False)  # fmt: skip
    notebook.cells.append(new_code_cell(PEAK))
    with tempfile.TemporaryDirectory() as folder:
        steps = Path(folder, "steps")
        steps.touch()
        os.environ |= dict.fromkeys(("TS_RECORDS", "TS_CHECKPOINTS"), folder)
        os.environ |= {"TS_NOTEBOOK": job.name, "TS_REHEARSE": str(steps)}
        at = {"metadata": {"path": str(job.source.parent)}}
        NotebookClient(notebook, timeout=None, allow_errors=True, kernel_name=KERNEL, resources=at).execute()
        more = sum(float(line) for line in steps.read_text().split())
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    failed = sum(output.output_type == "error" for output in outputs)
    job.cost.parent.mkdir(parents=True, exist_ok=True)
    megabytes = round(int(outputs[-1].text) / 1024)
    job.cost.write_text(json.dumps([round(time.perf_counter() - start + more, 1), megabytes, failed]))
    return ""


def note(jobs: list[Job]) -> None:
    """Write below ``results/`` how long notebooks were expected to take and how long they took when they last ran."""
    both = {job.name: [json.loads(job.cost.read_bytes())[0], job.last["seconds"]] for job in jobs if job.last}
    (RESULTS / "costs.json").write_text(json.dumps(both, indent=1) + "\n")

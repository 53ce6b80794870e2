"""Sweeps, in copies of the project with one tiny notebook: here and through a Slurm of one machine, with failures."""

import os
import shlex
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

import psutil
import pytest
import xarray as xr
import yaml
from conftest import ROOT
from test_run import wait_for

pytestmark = pytest.mark.slurm

NOTEBOOK = """---
jupytext: {text_representation: {extension: .md, format_name: myst, format_version: 0.13}}
kernelspec: {display_name: Python 3, language: python, name: python3}
---

```{code-cell} ipython3
:tags: [parameters]

scale = "smoke"  # one of smoke, book; none matters
seed = 0         # int in [0, inf); seeds every random draw
device = "cpu"   # one of cpu; where it runs
lr = 0.01        # float in (0, 1]; learning rate
word = "a"       # one of a, a name; no matter
```

```{code-cell} ipython3
import os
import time
from types import SimpleNamespace

import torch

from ts_helpers import fit
from ts_helpers.book.chapter import Chapter
from ts_helpers.book.claims import read_claims
from ts_helpers.seeding import generator_of

chapter = Chapter("doe2020/line", globals(), lr=lr, word=word)
fit.time = SimpleNamespace(perf_counter=lambda: time.perf_counter() * 300)  # a checkpoint in a fifth of a second


def draw(step):
    x = torch.randn(8, 4, generator=generator_of(seed, step))
    return x, x.prod(1, keepdim=True)


def batch(step):
    with open(os.environ["TS_RECORDS"] + "/steps", "a") as file:
        file.write(f"{step}\\n")
    time.sleep(0.01)
    return draw(step)


def loss(network, x, y):
    return (network(x) - y).square().mean()


torch.manual_seed(seed)
network = torch.nn.Sequential(torch.nn.Linear(4, 30), torch.nn.Tanh(), torch.nn.Linear(30, 1))
history = fit.fit(network, loss, batch, n_steps=300, lr=lr, eval_data=draw(0), checkpoint=chapter.checkpoints)
results = chapter.dataset({"loss": ("step", history.metrics["loss"][0], "mean squared error"),
                           "threads": ("", int(os.environ["OMP_NUM_THREADS"]), "threads")})
asked = [quantity.name for quantity in read_claims()["C1"].quantities]  # any claim will do
chapter.judge(results, str, {"C1": {name: lambda results: results.loss.values for name in asked}})
chapter.save()
```
"""
GRID = {"notebook": "doe2020/line", "lr": [0.003, 0.01, 0.03, 0.1], "word": ["a", "a name"], "seed": [0, 1, 2]}
SLURM = "--executor slurm --jobs 24 --default-resources slurm_partition={}"
# what a cluster of one machine needs besides: it keeps no accounts, and its jobs are short
SLURM += " --slurm-no-account --slurm-status-command squeue --slurm-init-seconds-before-status-checks 5"
OURS, CONF = "# of make test-slurm, which removes it\n", Path("/etc/slurm/slurm.conf")
CLUSTER = """ClusterName=one
SlurmctldHost={host}(127.0.0.1)
SlurmUser=root
SlurmdUser=root
StateSaveLocation={folder}
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
MpiDefault=none
ProctrackType=proctrack/linuxproc
TaskPlugin=task/affinity
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU_Memory
ReturnToService=2
MinJobAge=3600
NodeName={host} NodeAddr=127.0.0.1 CPUs={cores} RealMemory={memory}
PartitionName=whole Nodes={host} Default=YES MaxTime=60
PartitionName=single Nodes={host} MaxTime=60 MaxCPUsPerNode=1
"""


class Sweeps:
    """A copy of the project, in which sweeps run by the command of `make sweep`."""

    def __init__(self, root: Path):
        self.root = root
        (root / "notebooks/doe2020").mkdir(parents=True)
        (root / "notebooks/doe2020/line.md").write_text(NOTEBOOK)
        for name in ("ts_helpers", "workflow"):
            shutil.copytree(ROOT / name, root / name, ignore=shutil.ignore_patterns("__pycache__"))
        (root / "book").mkdir()
        shutil.copy(ROOT / "book/claims.yml", root / "book")

    def start(self, runs: object, words: str = "") -> subprocess.Popen:
        """Start a sweep, or start it again; what it says goes to the file log."""
        (self.root / "grid.yml").write_text(yaml.safe_dump({"runs": runs}, sort_keys=False))
        call = ["make", "-n", "--no-print-directory", "sweep", "JOBS=2", "FILE=grid.yml", f"SWEEP={words}"]
        shown = subprocess.run(call, cwd=ROOT, capture_output=True, text=True, check=True).stdout
        command = [sys.executable, "-m", "snakemake", *shlex.split(shown.split("/snakemake ")[1].replace("\\\n", " "))]
        env = os.environ | {"PYTHONPATH": str(self.root)}
        with (self.root / "log").open("w") as log:
            return subprocess.Popen(command, cwd=self.root, env=env, stdout=log, stderr=log)

    def end(self, process: subprocess.Popen) -> tuple[int, str]:
        """Wait for the end of a sweep; return its exit code and what it said."""
        try:
            return process.wait(1800), (self.root / "log").read_text()
        finally:
            process.kill()

    def run(self, runs: object, words: str = "") -> tuple[int, str]:
        """Run a sweep to its end."""
        return self.end(self.start(runs, words))

    def running(self, besides: Sequence[Path] = ()) -> dict[Path, psutil.Process]:
        """Return the runners at work that have left a checkpoint, by the folder of their job; of the others."""
        found = {}
        for process in psutil.process_iter(["cmdline", "cwd"]):
            words = process.info["cmdline"] or []
            if words[1:3] == ["-m", "ts_helpers.run"] and process.info["cwd"] == str(self.root):
                folder = self.root / words[-1]
                if folder not in besides and any(folder.glob(".checkpoints/**/[!.]*.pt")):
                    found[folder] = process
        return found

    def done(self) -> set[Path]:
        """Return the folders of the jobs that have come to their end."""
        return {stamp.parents[1] for stamp in (self.root / "runs/grid").glob("*/doe2020/line.done")}

    def steps(self) -> dict[Path, list[str]]:
        """Return the steps whose batches were made, by the folder of their job: as it starts 0, then those it takes."""
        return {file.parent: file.read_text().split() for file in (self.root / "runs/grid").glob("*/steps")}

    def made(self) -> dict[str, bytes]:
        """Return what must not differ, by path: results, verdicts, what is gathered, the page."""
        files = [file for end in ("*.nc", "claims.json", "index.html") for file in (self.root / "runs/grid").rglob(end)]
        return {file.relative_to(self.root).as_posix(): file.read_bytes() for file in files}


@pytest.fixture(scope="module")
def laptop(tmp_path_factory) -> Sweeps:
    """A copy in which the sweep has run, two jobs at a time and undisturbed."""
    sweeps = Sweeps(tmp_path_factory.mktemp("laptop"))
    code, said = sweeps.run([GRID])
    assert code == 0, said
    assert len(sweeps.done()) == 24 and len(sweeps.made()) == 24 * 2 + 2
    return sweeps


class Slurm(ExitStack):
    """Controller and node daemon of a Slurm on this machine."""

    def __init__(self, folder: Path):
        super().__init__()
        self.folder, self.daemons = folder, dict[str, subprocess.Popen]()

    def start(self, *command: str, **how: str) -> None:
        """Start a daemon, which ends with this."""
        with (self.folder / f"{command[0]}.log").open("a") as log:
            self.daemons[command[0]] = daemon = subprocess.Popen(command, stdout=log, stderr=log, **how)
        self.callback(daemon.wait)
        self.callback(daemon.terminate)

    def kill(self, name: str) -> None:
        self.daemons[name].kill()
        self.daemons[name].wait()

    def says(self, *command: str) -> str:
        return subprocess.run(command, capture_output=True, text=True).stdout.strip()


@pytest.fixture(scope="module")
def slurm(tmp_path_factory):
    """A Slurm of one machine with two partitions, one of them with one core for all its jobs; gone afterwards."""
    if CONF.exists() and not CONF.read_text().startswith(OURS):
        pytest.fail(f"{CONF} is there, and not of this test: it would be overwritten")
    with Slurm(tmp_path_factory.mktemp("slurm")) as slurm:
        size = dict(cores=os.cpu_count(), memory=psutil.virtual_memory().total * 9 // 10 >> 20)
        host = socket.gethostname().partition(".")[0]
        CONF.write_text(OURS + CLUSTER.format(host=host, folder=slurm.folder, **size))
        slurm.callback(CONF.unlink)
        if subprocess.run("munge -n | unmunge", shell=True, capture_output=True).returncode:
            os.makedirs("/run/munge", exist_ok=True)
            shutil.chown("/run/munge", "munge", "munge")
            slurm.callback(shutil.rmtree, "/run/munge")
            slurm.start("munged", "--foreground", user="munge", group="munge")
        slurm.start("slurmctld", "-D")
        slurm.start("slurmd", "-D")
        wait_for(lambda: slurm.says("sinfo", "-ho", "%t").startswith("idle"))
        yield slurm
        slurm.says("scancel", "--user=root")
        wait_for(lambda: not slurm.says("squeue", "-h"))


@pytest.mark.parametrize(
    ("runs", "message"),
    [
        ([GRID | {"nosuch": 1}], "line: no parameter is called 'nosuch'; there are scale, seed, device, lr, word"),
        ([GRID | {"notebook": "doe2020/nosuch"}], "no notebook 'doe2020/nosuch'; there are doe2020/line"),
        ([GRID | {"lr": [0.1, 2]}], "doe2020/line: lr must be float in (0, 1], got 2.0"),
        (GRID, "grid: runs must be a list of mappings, each with a notebook, got {"),
        ([GRID, GRID], "grid: two runs would leave the record runs/grid/lr~0.003+word~a+seed~0/doe2020/line"),
    ],
)
def test_wrong_sweep_is_refused_by_name_before_anything_runs(tmp_path, runs, message):
    sweeps = Sweeps(tmp_path)
    code, said = sweeps.run(runs)
    assert code == 1
    assert message in said
    assert not (tmp_path / "runs").exists()


def test_sweep_that_is_done_runs_nothing(laptop):
    before = laptop.steps()
    code, said = laptop.run([GRID])
    assert code == 0 and "Nothing to be done" in said
    assert laptop.steps() == before


def test_sweep_of_a_machine_that_died_goes_on_to_the_same_numbers(laptop, tmp_path):
    sweeps, runs = Sweeps(tmp_path), [GRID | {"lr": 0.01, "word": "a", "seed": [0, 1]}]
    process = sweeps.start(runs)
    wait_for(lambda: len(sweeps.running()) == 2)
    for each in (psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)):
        each.kill()
    assert process.wait() and not sweeps.done()
    code, said = sweeps.run(runs)
    assert code == 0, said
    for folder, steps in sweeps.steps().items():
        assert steps.count("0") == 3  # of its two starts, and of the first step
        theirs = f"runs/grid/lr~0.01+word~a+{folder.name}/doe2020/line/results.nc"
        assert (folder / "doe2020/line/results.nc").read_bytes() == laptop.made()[theirs]


def test_sweep_on_slurm_outlives_jobs_and_daemons_and_is_byte_for_byte_the_laptops(laptop, slurm, tmp_path):
    sweeps, killed, begun = Sweeps(tmp_path), list[Path](), time.monotonic()

    def tell(what: str) -> None:
        print(f"{time.monotonic() - begun:5.0f} s  {len(sweeps.done()):2} of 24 jobs done; {what}", flush=True)

    process = sweeps.start([GRID], SLURM.format("whole"))
    for done, daemon in ((3, "slurmd"), (9, "slurmctld"), (15, "")):
        wait_for(lambda done=done: len(sweeps.done()) >= done, 600)
        folder, job = wait_for(lambda: sweeps.running(besides=killed), 300).popitem()
        job.kill()
        killed.append(folder)
        tell(f"killed the job {folder.name}")
        if daemon:
            time.sleep(10)  # the controller loses what it has not written yet
            slurm.kill(daemon)
            tell(f"killed {daemon}")
            time.sleep(3)
            slurm.start(daemon, "-D")
            tell(f"{daemon} is back")
    code, said = sweeps.end(process)
    tell(f"snakemake exits {code}")
    assert code == 1, said
    assert not sweeps.done() & set(killed)
    code, said = sweeps.run([GRID], SLURM.format("single"))
    tell(f"started again, in the other partition: snakemake exits {code}")
    assert code == 0, said
    for folder in killed:
        assert sweeps.steps()[folder].count("0") == 3
    same = sweeps.made() == laptop.made()
    print(f"         {len(sweeps.made())} files, byte for byte the laptop's: {same}")
    assert same
    gathered = xr.load_dataset(tmp_path / "runs/grid/doe2020/line.nc", engine="h5netcdf")
    assert gathered.threads.sizes == {"lr": 4, "word": 2, "seed": 3} and bool((gathered.threads == 1).all())

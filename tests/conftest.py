"""What several tests need: a copy of the project in which notebooks can run and the book can be built."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


def run(root: Path, module: str, *words: str, **environment: str) -> subprocess.CompletedProcess:
    """Run a module in a copy of the project, whose own ts_helpers is the one imported."""
    env = {k: v for k, v in os.environ.items() if k != "TS_RECORDS"} | {"PYTHONPATH": str(root)} | environment
    return subprocess.run([sys.executable, "-m", module, *words], cwd=root, env=env, capture_output=True, text=True)


@pytest.fixture(scope="session")
def project(tmp_path_factory) -> Path:
    """A copy of the project whose notebooks have all run at smoke scale."""
    root = tmp_path_factory.mktemp("project")
    for name in ("book", "notebooks", "results", "ts_helpers"):
        shutil.copytree(ROOT / name, root / name, ignore=shutil.ignore_patterns("*.ipynb", "__pycache__", ".*"))
    for name in ("_config.yml", "_toc.yml", "README.md"):
        shutil.copy(ROOT / name, root)
    done = run(root, "ts_helpers.run", "--scale", "smoke", "--jobs", str(os.cpu_count()))
    assert done.returncode == 0, done.stderr
    return root


@pytest.fixture(scope="session")
def site(project) -> Path:
    """The pages of that copy, built with every warning an error."""
    assert (project / "book" / "static" / "vendor" / "mathjax").is_dir(), "make fetches these: run make test"
    made = run(project, "ts_helpers.pages")
    assert made.returncode == 0, made.stderr
    book = Path(sys.executable).with_name("jupyter-book")
    built = subprocess.run(
        [book, "build", ".", "--all", "-W", "-n", "--keep-going"], cwd=project, capture_output=True, text=True
    )
    assert built.returncode == 0, built.stdout[-3000:] + built.stderr[-3000:]
    return project / "_build" / "html"

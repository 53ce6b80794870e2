import base64
import hashlib
import io
import subprocess
import sys
import tarfile

import pytest
from conftest import ROOT

sys.path.insert(0, str(ROOT / "tools"))
import vendor_assets

PACKAGE = {"package/dist/a.js": b"a", "package/fonts/b.woff2": b"b"}


def archive():
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        for name, data in PACKAGE.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


@pytest.fixture
def registry(monkeypatch):
    """A registry that serves one package, and the package's hash."""
    data = archive()

    def npm(words, cwd, **how):
        (vendor_assets.Path(cwd) / "p-1.0.tgz").write_bytes(data)
        return subprocess.CompletedProcess(words, 0, "", "")

    monkeypatch.setattr(vendor_assets, "npm", npm)
    return base64.b64encode(hashlib.sha512(data).digest()).decode()


def fetch(monkeypatch, destination, sha512, files):
    monkeypatch.setattr(vendor_assets, "SETS", {"book": (destination, {"p@1.0": (sha512, files)})})
    monkeypatch.setattr(sys, "argv", ["vendor_assets.py", "book"])
    vendor_assets.main()


def test_assets_come_to_their_places(tmp_path, monkeypatch, registry):
    fetch(monkeypatch, tmp_path / "vendor", registry, {"dist/a.js": "p/a.js", "fonts/*.woff2": "p/"})
    assert (tmp_path / "vendor" / "p" / "a.js").read_bytes() == b"a"
    assert (tmp_path / "vendor" / "p" / "b.woff2").read_bytes() == b"b"


def test_package_with_another_hash_is_refused_and_nothing_stays(tmp_path, monkeypatch, registry):
    with pytest.raises(SystemExit, match="p@1.0 is not the package it was"):
        fetch(monkeypatch, tmp_path / "vendor", "0" * 88, {"dist/a.js": "p/a.js"})
    assert not (tmp_path / "vendor").exists()


def test_package_without_an_expected_file_is_refused(tmp_path, monkeypatch, registry):
    with pytest.raises(SystemExit, match=r"p@1.0 has no dist/c\.js"):
        fetch(monkeypatch, tmp_path / "vendor", registry, {"dist/c.js": "p/c.js"})


def test_registry_that_does_not_answer_is_named(tmp_path, monkeypatch):
    failed = subprocess.CompletedProcess([], 1, "", "no network")
    monkeypatch.setattr(vendor_assets, "npm", lambda *words, **how: failed)
    with pytest.raises(SystemExit, match="could not fetch p@1.0 from the npm registry: no network"):
        fetch(monkeypatch, tmp_path / "vendor", "0" * 88, {})

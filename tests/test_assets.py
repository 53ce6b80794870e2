import base64
import hashlib
import io
import subprocess
import sys
import tarfile

import pytest
import vendor_assets

HERE = {"dist/a.js": "p/a.js", "fonts/*.woff2": "p/"}


@pytest.fixture
def fetch(monkeypatch, tmp_path):
    """Fetch files of one package, with a hash or its own, from a registry that serves it, or answers so."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        for name in ("package/dist/a.js", "package/fonts/b.woff2"):
            info = tarfile.TarInfo(name)
            info.size = len(name)
            tar.addfile(info, io.BytesIO(name.encode()))

    own = base64.b64encode(hashlib.sha512(buffer.getvalue()).digest()).decode()

    def fetch(files, sha512=own, answer=None):
        def npm(words, cwd, **how):
            (vendor_assets.Path(cwd) / "p-1.0.tgz").write_bytes(buffer.getvalue())
            return answer or subprocess.CompletedProcess(words, 0, "", "")

        monkeypatch.setattr(vendor_assets, "npm", npm)
        monkeypatch.setattr(vendor_assets, "SETS", {"book": (tmp_path / "vendor", {"p@1.0": (sha512, files)})})
        monkeypatch.setattr(sys, "argv", ["vendor_assets.py", "book"])
        vendor_assets.main()

    return fetch


def test_assets_come_to_their_places(tmp_path, fetch):
    fetch(HERE)
    assert (tmp_path / "vendor" / "p" / "a.js").read_text() == "package/dist/a.js"
    assert (tmp_path / "vendor" / "p" / "b.woff2").read_text() == "package/fonts/b.woff2"


@pytest.mark.parametrize(("how", "message"), [
    (dict(files=HERE, sha512="0" * 88), "p@1.0 is not the package it was"),
    (dict(files={"dist/c.js": "p/c.js"}), r"p@1.0 has no dist/c\.js"),
    (dict(files=HERE, answer=subprocess.CompletedProcess([], 1, "", "no network")),
     "could not fetch p@1.0 from the npm registry: no network"),
])  # fmt: skip
def test_package_that_is_not_as_expected_is_refused_and_nothing_stays(tmp_path, fetch, how, message):
    with pytest.raises(SystemExit, match=message):
        fetch(**how)
    assert not (tmp_path / "vendor").exists()

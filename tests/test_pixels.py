import gzip
import hashlib
import importlib.util
import io
import socket
import struct
import sys
import types
from pathlib import Path

import numpy as np
import pytest
import torch

from ts_helpers.datasets import pixels
from ts_helpers.datasets.pixels import images, permutation

IMAGES, LABELS = "train-images-idx3-ubyte", "train-labels-idx1-ubyte"
TEST_IMAGES, TEST_LABELS = "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def idx(array):
    array = np.asarray(array, np.uint8)
    return bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()


def grey(n, height=3, width=2):
    """Images that differ: the first pixel of image i is i, the others count on."""
    return np.arange(n)[:, None, None] + np.arange(height * width).reshape(height, width)


def contents(n_train=24, n_test=5):
    each = {IMAGES: grey(n_train), LABELS: np.arange(n_train) % 10}
    each |= {TEST_IMAGES: grey(n_test), TEST_LABELS: np.arange(n_test) % 10}
    return {name: idx(array) for name, array in each.items()}


GOOD = contents()


def write(folder, files=GOOD):
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / name).write_bytes(content)
    return folder


def pairs(part):
    """What a part has of images whose first pixel is their number, and their labels."""
    return list(zip((part.x[0, :, 0] * 255).round().int().tolist(), part.y.tolist(), strict=True))


def test_pixels_come_row_by_row_from_black_0_to_white_1(tmp_path):
    test = images("folder", write(tmp_path), generator=seeded()).test
    assert test.x.shape == (6, 5, 1)  # (pixels, images, 1)
    assert test.x.dtype == torch.get_default_dtype()
    np.testing.assert_allclose(test.x[:, 2, 0].numpy() * 255, [2, 3, 4, 5, 6, 7], rtol=1e-6)
    assert test.y.tolist() == [0, 1, 2, 3, 4]
    assert test.y.dtype == torch.int64
    write(tmp_path, {TEST_IMAGES: idx(np.array([0, 255] * 15).reshape(5, 3, 2))})
    assert images("folder", tmp_path, generator=seeded()).test.x.unique().tolist() == [0, 1]


def test_sixth_of_the_training_images_is_drawn_to_validate_with(tmp_path):
    data = images("folder", write(tmp_path / "mine"), generator=seeded())
    train, valid = pairs(data.train), pairs(data.valid)
    assert (len(train), len(valid)) == (20, 4)
    assert sorted(train + valid) == [(i, i % 10) for i in range(24)]  # each once, with its own label
    assert pairs(data.test) == [(i, i) for i in range(5)]
    assert data.name == "images from the folder mine"
    assert pairs(images("folder", str(tmp_path / "mine"), generator=seeded(1)).valid) != valid
    assert pairs(pixels.some(data.train, 7)) == train[:7]
    assert pairs(pixels.some(data.train, 20)) == train
    with pytest.raises(ValueError, match="n must be at most 20, the number of images, got 21"):
        pixels.some(data.train, 21)


@pytest.mark.parametrize(("source", "name"), [("mnist", "MNIST"), ("fashion", "Fashion-MNIST")])
def test_set_is_read_from_a_folder_and_known_by_how_many_images_each_class_has(source, name, tmp_path):
    y = np.repeat(np.arange(10), pixels.COUNTS[source])
    files = GOOD | {IMAGES: idx(np.zeros((60_000, 3, 2))), LABELS: idx(y)}
    data = images(source, write(tmp_path / "mine", files), generator=seeded())
    assert data.name == name
    assert len(data.train.y) == 50_000
    with pytest.raises(ValueError, match=rf"mine2 must hold {name}, \[.*\] training images of each class, got \[3, "):
        images(source, write(tmp_path / "mine2"), generator=seeded())


def test_compressed_files_are_read_as_plain_ones(tmp_path):
    plain = images("folder", write(tmp_path / "plain"), generator=seeded())
    packed = {f"{name}.gz": gzip.compress(content) for name, content in GOOD.items()}
    packed = images("folder", write(tmp_path / "packed", packed), generator=seeded())
    for part in ("train", "valid", "test"):
        assert torch.equal(getattr(plain, part).x, getattr(packed, part).x)
        assert torch.equal(getattr(plain, part).y, getattr(packed, part).y)


def bytes_of(*parts):
    """Images (n, 784) and labels (n,) of parts, one below the other, as MNIST's files have them."""
    x, y = (torch.cat(each).numpy() for each in zip(*((part.x[..., 0].T, part.y) for part in parts), strict=True))
    return (x * 255).round().astype(np.uint8), y.astype(np.uint8)


def test_own_images_are_the_first_10000_of_mnists_training_file_each_in_one_part():
    data = images(generator=seeded())
    assert data.name == "10,000 images of MNIST"
    parts = (data.train, data.valid, data.test)
    assert [part.x.shape for part in parts] == [(784, 8000, 1), (784, 1000, 1), (784, 1000, 1)]
    with np.load(pixels.OWN) as own:
        grey, labels = own["images"], own["labels"]
    # of the bytes 16 to 7840016 of train-images-idx3-ubyte, and 8 to 10008 of train-labels-idx1-ubyte
    digest = hashlib.sha256(grey.tobytes() + labels.tobytes()).hexdigest()
    assert digest == "2e49afdffc567fd5f9f306a04e2bafced2432146ae04f4b9a58b25505ba05b2e"
    found = np.column_stack(bytes_of(*parts))
    assert sorted(map(bytes, found)) == sorted(map(bytes, np.column_stack([grey.reshape(10_000, -1), labels])))
    assert not np.array_equal(bytes_of(images(generator=seeded(1)).test)[0], bytes_of(data.test)[0])


@pytest.mark.skipif(not (pixels.DATA / "mnist").is_dir(), reason="MNIST was not downloaded")
def test_own_images_are_those_of_mnist_where_it_is_at_hand():
    with np.load(pixels.OWN) as own:
        for name, file in {"images": IMAGES, "labels": LABELS}.items():
            whole = pixels._read_idx(pixels.DATA / "mnist", file, own[name].ndim)
            assert np.array_equal(own[name], whole[:10_000])


def test_coarser_images_are_means_of_squares():
    part = pixels.Part(torch.rand(16, 3, 1, generator=seeded()), torch.arange(3))
    made = pixels.coarser(part, 2)
    squares = part.x.numpy().reshape(2, 2, 2, 2, 3)  # (row, row within, column, column within, image)
    np.testing.assert_allclose(made.x[..., 0].numpy(), squares.mean((1, 3)).reshape(4, 3), rtol=1e-6)
    assert torch.equal(pixels.coarser(part, 4).x, part.x) and torch.equal(made.y, part.y)
    for side, n in ((5, 16), (2, 6)):
        with pytest.raises(ValueError, match=rf"side must be at most .* got {side} for {n} pixels"):
            pixels.coarser(pixels.Part(part.x[:n], part.y), side)


def test_permutation_has_each_pixel_once():
    assert permutation(64, generator=seeded(3)).sort().values.tolist() == list(range(64))


# --- what is refused

COUNTED = r"must hold a byte or more, as many as dimensions "
LABEL = r"must have a label of 0 to 9 for each image of train, got "
BAD = {
    "images in a labels file": (LABELS, GOOD[IMAGES], r"must begin with the bytes 00 00 08 01, got 00 00 08 03"),
    "other type": (IMAGES, b"\0\0\x0d\3" + GOOD[IMAGES][4:], r"must begin with the bytes 00 00 08 03, got 00 00 0d 03"),
    "empty": (IMAGES, b"", r"must begin with the bytes 00 00 08 03, got none"),
    "text": (LABELS, b"5, 0, 4", r"must begin with the bytes 00 00 08 01, got 35 2c 20 30"),
    "header cut": (IMAGES, GOOD[IMAGES][:10], COUNTED + r"\(24, 0, 0\) say, got 0"),
    "cut": (IMAGES, GOOD[IMAGES][:-7], COUNTED + r"\(24, 3, 2\) say, got 137"),
    "too long": (LABELS, GOOD[LABELS] + b"\0", COUNTED + r"\(24,\) say, got 25"),
    "no images": (IMAGES, idx(grey(0)), COUNTED + r"\(0, 3, 2\) say, got 0"),
    "no pixels": (IMAGES, idx(grey(24, 0)), COUNTED + r"\(24, 0, 2\) say, got 0"),
    "label missing": (LABELS, idx(np.arange(23) % 10), LABEL + "23 for 24, up to 9"),
    "eleven classes": (LABELS, idx(np.arange(24) % 11), LABEL + "24 for 24, up to 10"),
    "other size": (TEST_IMAGES, idx(grey(5, 2, 3)), r"must have images of one size, \(3, 2\) .*, got \(2, 3\)"),
}


@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize(("name", "content", "message"), BAD.values(), ids=BAD)
def test_damaged_file_is_refused_by_name_rule_and_value(name, content, message, compressed, tmp_path):
    (write(tmp_path) / name).unlink()
    path = tmp_path / (f"{name}.gz" if compressed else name)
    path.write_bytes(gzip.compress(content) if compressed else content)
    with pytest.raises(ValueError, match=f"^({path}|{tmp_path}) {message}$"):
        images("folder", tmp_path, generator=seeded())


def flipped(content, place):
    return content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :]


PACKED = gzip.compress(GOOD[IMAGES])
DAMAGED = {"checksum": flipped(PACKED, -8), "cut": PACKED[:-10], "none": GOOD[IMAGES], "inside": flipped(PACKED, 15)}


@pytest.mark.parametrize("content", DAMAGED.values(), ids=DAMAGED)
def test_damaged_compression_is_refused_by_name(content, tmp_path):
    (write(tmp_path) / IMAGES).unlink()
    (tmp_path / f"{IMAGES}.gz").write_bytes(content)
    with pytest.raises(ValueError, match=rf"cannot read .*{IMAGES}\.gz: "):
        images("folder", tmp_path, generator=seeded())


def test_missing_file_and_sources_that_are_none_are_refused(tmp_path):
    (write(tmp_path) / LABELS).unlink()
    for source, folder, message in [
        ("folder", tmp_path, rf"{tmp_path} must hold a file {LABELS}, .*train-labels\.idx1-ubyte\.gz, got none"),
        ("fashion", "nosuch/folder", rf"nosuch/folder must hold a file {IMAGES}, .*, got none"),
        ("MNIST", None, "source must be one of mnist10k, mnist, fashion, folder, got 'MNIST'"),
        ("mnist10k", tmp_path, "and none with \"mnist10k\", got source='mnist10k'"),
        ("folder", None, 'a folder must be named with "folder", .* folder=None'),
    ]:
        with pytest.raises(ValueError, match=message):
            images(source, folder, generator=seeded())


def test_too_few_images_to_hold_one_out_are_refused(tmp_path):
    with pytest.raises(ValueError, match="must have 6 or more training images, got 5"):
        images("folder", write(tmp_path, contents(5)), generator=seeded())
    assert len(images("folder", write(tmp_path, contents(6)), generator=seeded()).valid.y) == 1


@pytest.mark.parametrize("packed", [bytes, gzip.compress])
def test_files_are_read_under_their_other_name_too(packed, tmp_path):
    write(
        tmp_path / "other",
        {
            name.replace("-idx", ".idx") + ".gz" * (packed is not bytes): packed(content)
            for name, content in GOOD.items()
        },
    )
    mine, other = (
        images("folder", write(tmp_path / "usual"), generator=seeded()),
        images("folder", tmp_path / "other", generator=seeded()),
    )
    assert pairs(mine.train) == pairs(other.train) and pairs(mine.test) == pairs(other.test)


# --- downloads, none of which reach a network


@pytest.fixture
def kept(tmp_path, monkeypatch):
    """Where downloads are kept, and no torchvision in memory before or after."""
    monkeypatch.setattr(pixels, "DATA", tmp_path / "data")
    for name in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
        monkeypatch.delitem(sys.modules, name)
    yield tmp_path / "data"
    for name in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
        del sys.modules[name]


def torchvision_with(monkeypatch, **datasets):
    monkeypatch.setitem(sys.modules, "torchvision", types.ModuleType("torchvision"))
    module = types.ModuleType("torchvision.datasets")
    vars(module).update(datasets)
    monkeypatch.setitem(sys.modules, "torchvision.datasets", module)


class Downloading:
    """A set of torchvision: it writes the files one by one below its root, in a folder of its own name."""

    calls = 0
    fails = None

    def __init__(self, root, download):
        assert download
        type(self).calls += 1
        assert 0 < socket.getdefaulttimeout() <= 10
        self.raw_folder = f"{root}/{type(self).__name__}/raw"
        write(Path(self.raw_folder), {IMAGES: GOOD[IMAGES][:50]} if self.fails else GOOD)
        if self.fails:
            raise self.fails


@pytest.mark.parametrize(
    ("source", "set_name", "name"), [("mnist", "MNIST", "MNIST"), ("fashion", "FashionMNIST", "Fashion-MNIST")]
)
def test_set_is_downloaded_once_and_named(source, set_name, name, kept, monkeypatch):
    fake = type(set_name, (Downloading,), {})
    torchvision_with(monkeypatch, **{set_name: fake})
    data = images(source, generator=seeded())
    assert data.name == name
    assert pairs(data.test) == [(i, i) for i in range(5)]
    assert pairs(images(source, generator=seeded()).train) == pairs(data.train)
    assert fake.calls == 1
    assert [p.name for p in kept.iterdir()] == [source]
    assert socket.getdefaulttimeout() is None


@pytest.mark.parametrize(
    "failure", [RuntimeError("Error downloading:\nTried a mirror"), OSError("no route"), KeyboardInterrupt()]
)
def test_broken_download_leaves_nothing_and_can_be_repeated(failure, kept, monkeypatch):
    broken = type("MNIST", (Downloading,), {"fails": failure})
    torchvision_with(monkeypatch, MNIST=broken)
    with pytest.raises((RuntimeError, KeyboardInterrupt)) as raised:
        images("mnist", generator=seeded())
    if not isinstance(failure, KeyboardInterrupt):
        message = f'cannot download MNIST through torchvision: {str(failure).replace(chr(10), " ")}; take "mnist10k", '
        assert str(raised.value) == message + "which needs no download, or name the folder with its four files"
    assert list(kept.iterdir()) == []
    assert socket.getdefaulttimeout() is None
    torchvision_with(monkeypatch, MNIST=type("MNIST", (Downloading,), {}))
    assert images("mnist", generator=seeded()).name == "MNIST"


def test_without_torchvision_it_is_said_what_to_take_instead(kept, monkeypatch):
    monkeypatch.setitem(sys.modules, "torchvision", None)
    with pytest.raises(RuntimeError, match=r'cannot download Fashion-MNIST .*torchvision.*; take "mnist10k", '):
        images("fashion", generator=seeded())
    assert list(kept.iterdir()) == []


def test_torchvision_built_for_another_torch_is_imported_without_its_operators(kept, tmp_path, monkeypatch):
    """A torchvision whose description of its operators fails on import, as it does where these do not load."""
    package = tmp_path / "site" / "torchvision"
    write(package, {"__init__.py": b"from torchvision import _meta_registrations, datasets\n"})
    write(package, {"_meta_registrations.py": b"raise RuntimeError('operator torchvision::nms does not exist')\n"})
    write(package, {"datasets.py": b"class MNIST:\n    def __init__(*_, download): raise OSError('found')\n"})
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    with pytest.raises(RuntimeError, match='cannot download MNIST through torchvision: found; take "mnist10k"'):
        images("mnist", generator=seeded())


@pytest.mark.skipif(not importlib.util.find_spec("torchvision"), reason="torchvision is not installed")
@pytest.mark.parametrize("source", pixels.SETS)
def test_torchvision_that_is_installed_downloads_and_checks(source, kept, monkeypatch):
    """With the torch that is installed beside it, and no network: what its mirrors hold is in memory."""
    packed = {f"{name}.gz": gzip.compress(content) for name, content in GOOD.items()}

    def reply(request, **_):
        content = io.BytesIO(packed[Path(request.full_url).name])
        content.url, content.length = request.full_url, len(content.getvalue())
        return content

    monkeypatch.setattr("urllib.request.urlopen", reply)
    with pytest.raises(RuntimeError, match="through torchvision: .*corrupted"):
        images(source, generator=seeded())
    assert list(kept.iterdir()) == []
    found = getattr(sys.modules["torchvision.datasets"], pixels.SETS[source].replace("-", ""))
    sums = [(name, hashlib.md5(content).hexdigest()) for name, content in packed.items()]
    monkeypatch.setattr(found, "resources", sums)
    assert pairs(images(source, generator=seeded()).test) == [(i, i) for i in range(5)]
    assert [p.name for p in kept.iterdir()] == [source]

import gzip
import socket
import struct
import sys
import types
from pathlib import Path

import numpy as np
import pytest
import torch

from ts_helpers.datasets import pixels
from ts_helpers.datasets.pixels import FILES, images, permutation, read_idx


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def idx(array):
    return bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()


def grey(n, height=3, width=2):
    """Images that differ: the first pixel of image i is i, the others count on."""
    return (np.arange(n)[:, None, None] + np.arange(height * width).reshape(height, width)).astype(np.uint8)


def labels(n):
    return (np.arange(n) % 10).astype(np.uint8)


def contents(n_train=24, n_test=5):
    names = [name for pair in FILES for name in pair]
    arrays = (grey(n_train), labels(n_train), grey(n_test), labels(n_test))
    return {name: idx(array) for name, array in zip(names, arrays, strict=True)}


def write(folder, files=None):
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in (files or contents()).items():
        (folder / name).write_bytes(content)
    return folder


def pairs(part):
    """What a part has of images whose first pixel is their number, and their labels."""
    return list(zip((part.x[0, :, 0] * 255).round().int().tolist(), part.y.tolist(), strict=True))


def test_files_are_those_of_mnist():
    assert FILES == (
        ("train-images-idx3-ubyte", "train-labels-idx1-ubyte"),
        ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"),
    )


def test_pixels_come_row_by_row(tmp_path):
    test = images("folder", write(tmp_path / "mine"), generator=seeded()).test
    assert test.x.shape == (6, 5, 1)  # (pixels, images, 1)
    assert test.x.dtype == torch.get_default_dtype()
    np.testing.assert_allclose(test.x[:, 2, 0].numpy() * 255, [2, 3, 4, 5, 6, 7], rtol=1e-6)
    assert test.y.tolist() == [0, 1, 2, 3, 4]
    assert test.y.dtype == torch.int64


def test_black_is_0_and_white_1(tmp_path):
    files = contents()
    files[FILES[1][0]] = idx(np.array([0, 255] * 15, np.uint8).reshape(5, 3, 2))
    test = images("folder", write(tmp_path, files), generator=seeded()).test
    assert test.x.unique().tolist() == [0, 1]


def test_sixth_of_the_training_images_is_drawn_to_validate_with(tmp_path):
    data = images("folder", write(tmp_path), generator=seeded())
    train, valid = pairs(data.train), pairs(data.valid)
    assert (len(train), len(valid)) == (20, 4)
    assert sorted(train + valid) == [(i, i % 10) for i in range(24)]  # each once, with its own label
    assert pairs(data.test) == [(i, i) for i in range(5)]


def test_split_repeats_with_its_seed_and_differs_with_another(tmp_path):
    folder = write(tmp_path)
    once, again, other = (pairs(images("folder", folder, generator=seeded(s)).valid) for s in (1, 1, 2))
    assert once == again
    assert once != other


def test_folder_is_named_by_its_name_and_not_by_a_set(tmp_path):
    assert images("folder", write(tmp_path / "mine"), generator=seeded()).name == "images from the folder mine"
    assert images("folder", str(tmp_path / "mine"), generator=seeded()).name == "images from the folder mine"


@pytest.mark.parametrize(("source", "name"), [("mnist", "MNIST"), ("fashion", "Fashion-MNIST")])
def test_set_is_read_from_a_folder_and_known_by_how_many_images_each_class_has(source, name, tmp_path):
    y = np.repeat(np.arange(10, dtype=np.uint8), pixels.COUNTS[source])
    files = contents(60_000) | {FILES[0][0]: idx(np.zeros((60_000, 3, 2), np.uint8)), FILES[0][1]: idx(y)}
    data = images(source, write(tmp_path / "mine", files), generator=seeded())
    assert data.name == name
    assert len(data.train.y) == 50_000
    with pytest.raises(ValueError, match=rf"mine2 must hold {name}, \[.*\] training images of each class, got \[3, "):
        images(source, write(tmp_path / "mine2"), generator=seeded())


def test_some_are_the_first(tmp_path):
    part = images("folder", write(tmp_path), generator=seeded()).train
    assert pairs(pixels.some(part, 7)) == pairs(part)[:7]
    assert pairs(pixels.some(part, 20)) == pairs(part)
    with pytest.raises(ValueError, match="n must be at most 20, the number of images, got 21"):
        pixels.some(part, 21)


def test_compressed_files_are_read_as_plain_ones(tmp_path):
    plain = images("folder", write(tmp_path / "plain"), generator=seeded())
    packed = {f"{name}.gz": gzip.compress(content) for name, content in contents().items()}
    packed = images("folder", write(tmp_path / "packed", packed), generator=seeded())
    for part in ("train", "valid", "test"):
        assert torch.equal(getattr(plain, part).x, getattr(packed, part).x)
        assert torch.equal(getattr(plain, part).y, getattr(packed, part).y)


def test_digits_are_scikit_learns_and_nowhere_called_mnist():
    data = images(generator=seeded())
    assert data.name == "scikit-learn's digits"
    counts = [len(part.y) for part in (data.train, data.valid, data.test)]
    assert counts == [1249, 249, 299]
    assert sum(counts) == 1797
    for part in (data.train, data.valid, data.test):
        assert part.x.shape == (64, len(part.y), 1)
        assert (float(part.x.min()), float(part.x.max())) == (0, 1)
        assert set(part.y.tolist()) == set(range(10))


def test_digits_are_each_in_one_part():
    from sklearn.datasets import load_digits

    data = images(generator=seeded())
    columns = [
        (*part.x[:, i, 0].mul(16).int().tolist(), int(part.y[i]))
        for part in (data.train, data.valid, data.test)
        for i in range(len(part.y))
    ]
    grey, classes = load_digits(return_X_y=True)
    assert sorted(columns) == sorted((*map(int, g), int(c)) for g, c in zip(grey, classes, strict=True))


def test_digits_held_out_repeat_with_their_seed():
    once, again, other = (images(generator=seeded(s)) for s in (1, 1, 2))
    assert torch.equal(once.test.x, again.test.x)
    assert torch.equal(once.valid.y, again.valid.y)
    assert not torch.equal(once.test.x, other.test.x)


def test_permutation_has_each_pixel_once_and_repeats_with_its_seed():
    order = permutation(64, generator=seeded(3))
    assert order.sort().values.tolist() == list(range(64))
    assert torch.equal(order, permutation(64, generator=seeded(3)))
    assert not torch.equal(order, permutation(64, generator=seeded(4)))


def test_permutation_moves_the_pixels_of_all_images_alike(tmp_path):
    x = images("folder", write(tmp_path), generator=seeded()).test.x
    order = permutation(len(x), generator=seeded(1))
    for t, pixel in enumerate(order.tolist()):
        assert torch.equal(x[order][t], x[pixel])


# --- what is refused

LABELS, IMAGES = FILES[0][1], FILES[0][0]
GOOD = contents()
BAD = {
    "images in a labels file": (LABELS, idx(grey(24)), r"must begin with the bytes 00 00 08 01, got 00 00 08 03"),
    "other type": (IMAGES, b"\0\0\x0d\3" + GOOD[IMAGES][4:], r"must begin with the bytes 00 00 08 03, got 00 00 0d 03"),
    "empty": (IMAGES, b"", r"must begin with the bytes 00 00 08 03, got none"),
    "text": (LABELS, b"5, 0, 4", r"must begin with the bytes 00 00 08 01, got 35 2c 20 30"),
    "header cut": (IMAGES, GOOD[IMAGES][:10], r"must have a header of 16 bytes, got 10"),
    "cut": (IMAGES, GOOD[IMAGES][:-7], r"must hold 144 bytes for its dimensions \(24, 3, 2\), got 137"),
    "too long": (LABELS, GOOD[LABELS] + b"\0", r"must hold 24 bytes for its dimensions \(24,\), got 25"),
    "no images": (IMAGES, idx(grey(0)), r"must have 1 or more in each dimension, got \(0, 3, 2\)"),
    "no pixels": (IMAGES, idx(grey(24, 0)), r"must have 1 or more in each dimension, got \(24, 0, 2\)"),
    "label missing": (LABELS, idx(labels(23)), r"must have a label for each of 24 images, got 23"),
    "eleven classes": (LABELS, idx(np.arange(24, dtype=np.uint8) % 11), r"must have labels from 0 to 9, got 10"),
}


@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize(("name", "content", "message"), BAD.values(), ids=BAD)
def test_damaged_file_is_refused_by_name_rule_and_value(name, content, message, compressed, tmp_path):
    folder = write(tmp_path)
    (folder / name).unlink()
    path = folder / (f"{name}.gz" if compressed else name)
    path.write_bytes(gzip.compress(content) if compressed else content)
    with pytest.raises(ValueError, match=f"^{path} {message}$"):
        images("folder", folder, generator=seeded())


def flipped(content, place):
    return content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :]


PACKED = gzip.compress(GOOD[IMAGES])
DAMAGED = {"checksum": flipped(PACKED, -8), "cut": PACKED[:-10], "none": GOOD[IMAGES], "inside": flipped(PACKED, 15)}


@pytest.mark.parametrize("content", DAMAGED.values(), ids=DAMAGED)
def test_damaged_compression_is_refused_by_name(content, tmp_path):
    folder = write(tmp_path)
    (folder / IMAGES).unlink()
    (folder / f"{IMAGES}.gz").write_bytes(content)
    with pytest.raises(ValueError, match=rf"cannot read .*{IMAGES}\.gz: "):
        images("folder", folder, generator=seeded())


def test_missing_file_is_refused_by_name(tmp_path):
    folder = write(tmp_path)
    (folder / LABELS).unlink()
    with pytest.raises(ValueError, match=rf"{folder} must hold a file {LABELS} or {LABELS}\.gz, got neither"):
        images("folder", folder, generator=seeded())
    with pytest.raises(ValueError, match=r"cannot read .*nosuch: .*No such file"):
        read_idx(folder / "nosuch", 1)


def test_unknown_source_is_refused_with_those_there_are():
    with pytest.raises(ValueError, match='source must be "digits", "mnist", "fashion" or "folder", got \'MNIST\''):
        images("MNIST", generator=seeded())


def test_folder_that_is_missing_or_of_no_use_is_refused(tmp_path):
    with pytest.raises(ValueError, match="there must be a folder nosuch/folder, got none"):
        images("fashion", "nosuch/folder", generator=seeded())
    with pytest.raises(ValueError, match="and none with \"digits\", got source='digits'"):
        images("digits", tmp_path, generator=seeded())
    with pytest.raises(ValueError, match='a folder must be named with "folder", .* folder=None'):
        images("folder", generator=seeded())


def test_test_images_of_another_size_are_refused(tmp_path):
    files = contents()
    files[FILES[1][0]] = idx(grey(5, 2, 3))
    message = r"t10k-images-idx3-ubyte must have images of the size of the training images, \(3, 2\), got \(2, 3\)"
    with pytest.raises(ValueError, match=message):
        images("folder", write(tmp_path, files), generator=seeded())


def test_too_few_images_to_hold_one_out_are_refused(tmp_path):
    with pytest.raises(ValueError, match="must have 6 or more training images, got 5"):
        images("folder", write(tmp_path, contents(5)), generator=seeded())
    assert len(images("folder", write(tmp_path, contents(6)), generator=seeded()).valid.y) == 1


# --- downloads, none of which reach a network


@pytest.fixture
def kept(tmp_path, monkeypatch):
    """Where downloads are kept, and no torchvision in memory before or after."""
    monkeypatch.setattr(pixels, "data_folder", lambda: tmp_path / "data")
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
        message = f'cannot download MNIST through torchvision: {str(failure).replace(chr(10), " ")}; take "digits", '
        assert str(raised.value) == message + "which need no download, or name the folder with its four files"
    assert list(kept.iterdir()) == []
    assert socket.getdefaulttimeout() is None
    torchvision_with(monkeypatch, MNIST=type("MNIST", (Downloading,), {}))
    assert images("mnist", generator=seeded()).name == "MNIST"


def test_without_torchvision_it_is_said_what_to_take_instead(kept, monkeypatch):
    monkeypatch.setitem(sys.modules, "torchvision", None)
    with pytest.raises(RuntimeError, match=r'cannot download Fashion-MNIST .*torchvision.*; take "digits", .* folder'):
        images("fashion", generator=seeded())
    assert list(kept.iterdir()) == []


def installed(folder, monkeypatch, complaint):
    """A torchvision whose description of its operators fails on import, as it does where these do not load."""
    package = folder / "site" / "torchvision"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("from torchvision import _meta_registrations, datasets\n")
    (package / "_meta_registrations.py").write_text(f"raise RuntimeError({complaint!r})\n")
    (package / "datasets.py").write_text("class MNIST:\n    pass\n")
    monkeypatch.syspath_prepend(str(folder / "site"))


def test_torchvision_built_for_another_torch_is_imported_without_its_operators(kept, tmp_path, monkeypatch):
    installed(tmp_path, monkeypatch, "operator torchvision::nms does not exist")
    assert pixels._torchvision_datasets().MNIST.__name__ == "MNIST"


def test_torchvision_broken_otherwise_is_not_mended(kept, tmp_path, monkeypatch):
    installed(tmp_path, monkeypatch, "something else")
    with pytest.raises(RuntimeError, match=r'cannot download MNIST through torchvision: something else; take "digits"'):
        images("mnist", generator=seeded())

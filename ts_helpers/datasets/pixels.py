"""Images whose pixels come one by one: the classification task of Tallec & Ollivier (2018)."""

import gzip
import importlib
import math
import socket
import struct
import sys
import tempfile
import types
import zlib
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ts_helpers.book.paths import data_folder

CLASSES = 10  # of every source; guessing one at random is right for a tenth of the images
HELD = 6  # one image in so many is drawn to be held out
FILES = (
    ("train-images-idx3-ubyte", "train-labels-idx1-ubyte"),
    ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"),
)
DOWNLOADS = {"mnist": "MNIST", "fashion": "Fashion-MNIST"}
COUNTS = {  # training images of each class, by which a set is known
    "mnist": [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949],
    "fashion": [6000] * CLASSES,
}
PATIENCE = 10.0  # with a host that does not answer, seconds


@dataclass
class Part:
    """Images, and the class of each.

    Attributes:
        x: (pixels, images, 1), row by row, from 0 to 1.
        y: (images,), whole numbers 0 to 9.
    """

    x: Tensor
    y: Tensor


@dataclass
class Images:
    """Images to train with, to choose by, and to test with.

    Attributes:
        name: what the images are, for titles and verdicts.
        train: what is trained on.
        valid: held out of the training images.
        test: seen by nobody before the end.
    """

    name: str
    train: Part
    valid: Part
    test: Part


def images(source: str = "digits", folder: str | Path | None = None, *, generator: torch.Generator) -> Images:
    """Images as sequences of pixels, "from top to bottom, left to right"; at the end their class is asked for.

    Source: Tallec & Ollivier (2018), Appendix A, "Pixel level classification", with MNIST. Departure: which images
    they validate with is open there; ours are a sixth of the training images. The digits, which are the default
    because they need no network, are not MNIST: they are fewer and smaller, and have no test images of their own, so
    that another sixth is drawn.

    Args:
        source: ``"digits"``, the 1797 images of 8 x 8 that scikit-learn has; ``"mnist"`` or ``"fashion"``, 70,000 of
            28 x 28; or ``"folder"``, others in the format of these.
        folder: with ``"folder"``, what holds the four files, plain or ``.gz``; so it may be with ``"mnist"`` and
            ``"fashion"``, which torchvision otherwise downloads, once. Debian's package ``dataset-fashion-mnist``
            has such a folder, ``/usr/share/datasets/fashion-mnist``.
        generator: draws what is held out.

    Raises:
        ValueError: the source is none of these, or has a folder that it should not have, or none that it should; or
            a file is missing, damaged, or at odds with another; or the images are not of the set that they should be.
        RuntimeError: the images cannot be downloaded.
    """
    if source not in ("digits", "folder", *DOWNLOADS):
        raise ValueError(f'source must be "digits", "mnist", "fashion" or "folder", got {source!r}')
    if (source == "digits" and folder) or (source == "folder" and not folder):
        raise ValueError(f'a folder must be named with "folder", and none with "digits", got {source=}, {folder=}')
    if source == "digits":
        name = "scikit-learn's digits"
        rest, test = _drawn(_digits(), generator)
    else:
        where = Path(folder) if folder else _downloaded(source)
        name = DOWNLOADS.get(source, f"images from the folder {where.resolve().name}")
        rest, test = _read(where)
        counts = torch.bincount(rest.y, minlength=CLASSES).tolist()
        if folder and counts != COUNTS.get(source, counts):
            raise ValueError(f"{folder} must hold {name}, {COUNTS[source]} training images of each class, got {counts}")
    train, valid = _drawn(rest, generator)
    return Images(name, train, valid, test)


def permutation(n_pixels: int, *, generator: torch.Generator) -> Tensor:
    """Draw the order in which pixels come, one for all images: ``x[order]`` has them in it.

    Source: Tallec & Ollivier (2018), Appendix A: "MNIST where all images have undergone the same pixel permutation".

    Returns:
        order: (pixels,), each of 0 to n_pixels - 1 once.
    """
    return torch.randperm(n_pixels, generator=generator)


def some(part: Part, n: int) -> Part:
    """Return the first n images, which are as random as the part.

    Raises:
        ValueError: there are fewer.
    """
    if n > len(part.y):
        raise ValueError(f"n must be at most {len(part.y)}, the number of images, got {n}")
    return Part(part.x[:, :n], part.y[:n])


def read_idx(path: Path, n_dims: int) -> np.ndarray:
    """Read bytes in the format of MNIST's files.

    Args:
        path: the file, compressed if its name ends in ``.gz``.
        n_dims: dimensions that it must have.

    Raises:
        ValueError: it cannot be read, is no such file, or is longer or shorter than its header says.
    """
    try:
        content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (OSError, EOFError, zlib.error) as error:
        raise ValueError(f"cannot read {path}: {error}") from None
    magic, start = bytes([0, 0, 8, n_dims]), 4 + 4 * n_dims  # 8: of unsigned bytes
    if content[:4] != magic:
        raise ValueError(f"{path} must begin with the bytes {magic.hex(' ')}, got {content[:4].hex(' ') or 'none'}")
    if len(content) < start:
        raise ValueError(f"{path} must have a header of {start} bytes, got {len(content)}")
    shape = struct.unpack(f">{n_dims}I", content[4:start])
    if min(shape) < 1:
        raise ValueError(f"{path} must have 1 or more in each dimension, got {shape}")
    if len(content) - start != math.prod(shape):
        n = len(content) - start
        raise ValueError(f"{path} must hold {math.prod(shape)} bytes for its dimensions {shape}, got {n}")
    return np.frombuffer(content, np.uint8, offset=start).reshape(shape)


def _digits() -> Part:
    from sklearn.datasets import load_digits  # takes a second or two, which only its user should wait

    grey, labels = load_digits(return_X_y=True)
    return _part(grey, labels, 16)


def _read(folder: Path) -> tuple[Part, Part]:
    """Read training and test images from a folder with the four files."""
    if not folder.is_dir():
        raise ValueError(f"there must be a folder {folder}, got none")
    parts, sizes = [], []
    for names in FILES:
        paths = [_found(folder, name) for name in names]
        grey, labels = read_idx(paths[0], 3), read_idx(paths[1], 1)
        if len(grey) != len(labels):
            raise ValueError(f"{paths[1]} must have a label for each of {len(grey)} images, got {len(labels)}")
        if labels.max() >= CLASSES:
            raise ValueError(f"{paths[1]} must have labels from 0 to {CLASSES - 1}, got {labels.max()}")
        sizes.append(grey.shape[1:])
        parts.append(_part(grey.reshape(len(grey), -1), labels, 255))
    if sizes[0] != sizes[1]:
        raise ValueError(f"{paths[0]} must have images of the size of the training images, {sizes[0]}, got {sizes[1]}")
    if len(parts[0].y) < HELD:
        raise ValueError(f"{folder} must have {HELD} or more training images, got {len(parts[0].y)}")
    return parts[0], parts[1]


def _found(folder: Path, name: str) -> Path:
    for path in (folder / name, folder / f"{name}.gz"):
        if path.is_file():
            return path
    raise ValueError(f"{folder} must hold a file {name} or {name}.gz, got neither")


def _part(grey: np.ndarray, labels: np.ndarray, white: int) -> Part:
    """Turn grey values (images, pixels), 0 to ``white``, and labels into tensors."""
    x = torch.as_tensor(grey.T.copy(), dtype=torch.get_default_dtype()).div_(white)
    return Part(x[..., None], torch.as_tensor(labels.astype(np.int64)))


def _drawn(part: Part, generator: torch.Generator) -> tuple[Part, Part]:
    """Divide images into those that stay and those held out."""
    order, n = torch.randperm(len(part.y), generator=generator), len(part.y) // HELD
    stay, held = order[n:], order[:n]
    return Part(part.x[:, stay], part.y[stay]), Part(part.x[:, held], part.y[held])


def _downloaded(source: str) -> Path:
    """Return the folder of a set that torchvision has downloaded and checked, all of it or nothing."""
    folder, name = data_folder() / source, DOWNLOADS[source]
    if folder.is_dir():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    before = socket.getdefaulttimeout()
    with tempfile.TemporaryDirectory(prefix=f".{source}.", dir=folder.parent) as part:
        try:
            socket.setdefaulttimeout(PATIENCE)  # torchvision sets none
            raw = getattr(_torchvision_datasets(), name.replace("-", ""))(part, download=True).raw_folder
        except (ImportError, OSError, RuntimeError, HTTPException) as error:
            instead = 'take "digits", which need no download, or name the folder with its four files'
            what = " ".join(str(error).split())  # it has lines, one of each mirror
            raise RuntimeError(f"cannot download {name} through torchvision: {what}; {instead}") from None
        finally:
            socket.setdefaulttimeout(before)
        if not folder.is_dir():  # another process was not faster
            Path(raw).rename(folder)
    return folder


def _torchvision_datasets() -> types.ModuleType:
    """Import the datasets of torchvision, also of one that was built for another torch.

    Plain pip puts a torchvision for CUDA beside a torch for CPUs. Its compiled operators then do not load, and one
    module fails because it describes them; the datasets use neither.
    """
    try:
        return importlib.import_module("torchvision.datasets")
    except RuntimeError as error:
        if "torchvision::" not in str(error):
            raise
    for name in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
        del sys.modules[name]
    describing = "torchvision._meta_registrations"
    sys.modules[describing] = types.ModuleType(describing)
    return importlib.import_module("torchvision.datasets")

"""Classes of sequences, from their last step: loss, error rate and batches; networks and images are made elsewhere."""

import functools
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ts_helpers._check import at_least, instance
from ts_helpers.datasets.pixels import Part
from ts_helpers.seeding import generator_of

AT_ONCE = 250  # sequences; the states of 10,000 images of 784 pixels at 512 units would take 16 GB


def cross_entropy(network: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """Mean at the last step, in nats; x (time, batch, features), y (batch,)."""
    return F.cross_entropy(network(x)[-1], y)


def error_rate(network: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """Share of sequences whose last scores favour another class; shapes as above."""
    parts = zip(x.split(AT_ONCE, dim=1), y.split(AT_ONCE), strict=True)
    wrong = [network(part)[-1].argmax(-1) != own for part, own in parts]
    return torch.cat(wrong).double().mean()


def shuffled_batches(part: Part, batch_size: int, *seed: int) -> tuple[Callable[[int], tuple[Tensor, Tensor]], int]:
    """Return the batches of a training in which each epoch has all images once, in an order of its own.

    Args:
        part: the images.
        batch_size: images in a batch; what is left over at the end of an epoch is left out.
        seed: path of seeds, see `seeding.generator_of`; the same path gives the same orders.

    Returns:
        The images and classes of a step, and how many steps make an epoch.

    Raises:
        ValueError: there are fewer images than a batch has.
    """
    instance(Part, "a Part", part=part)
    at_least(1, batch_size=batch_size)
    generator_of(*seed)  # refuses what is no seed, now
    if batch_size > len(part.y):
        raise ValueError(f"batch_size must be at most {len(part.y)}, the number of images, got {batch_size}")
    n_steps = len(part.y) // batch_size

    @functools.lru_cache(maxsize=1)
    def order(epoch: int) -> Tensor:
        return torch.randperm(len(part.y), generator=generator_of(*seed, epoch)).to(part.y.device)

    def batch(step: int) -> tuple[Tensor, Tensor]:
        epoch, k = divmod(step, n_steps)
        chosen = order(epoch)[k * batch_size : (k + 1) * batch_size]
        return part.x[:, chosen], part.y[chosen]

    return batch, n_steps

"""Steps of gradient descent for a stack of networks, a row for each, and when to shorten them."""

import torch
from torch import Tensor

BETAS, EPSILON = (0.9, 0.999), 1e-8  # Adam's, as everywhere
ALPHA = 0.9  # RMSprop's moving average, as in Tieleman & Hinton's lecture; torch's own default is 0.99


def adam(p: Tensor, m: Tensor, v: Tensor, grad: Tensor, rates: Tensor, step: int) -> None:
    """One step of Adam, as `torch.optim.Adam` takes it, with a learning rate for every number."""
    m.lerp_(grad, 1 - BETAS[0])
    v.mul_(BETAS[1]).addcmul_(grad, grad, value=1 - BETAS[1])
    spread = (v / (1 - BETAS[1] ** step)).sqrt_().add_(EPSILON)
    p.sub_((m / spread).mul_(rates).div_(1 - BETAS[0] ** step))


def rmsprop(p: Tensor, m: Tensor, v: Tensor, grad: Tensor, rates: Tensor, step: int) -> None:
    """One step of RMSprop, as `torch.optim.RMSprop` takes it with ``alpha=ALPHA``; Adam's m and step go unused."""
    v.mul_(ALPHA).addcmul_(grad, grad, value=1 - ALPHA)
    p.sub_((grad / v.sqrt().add_(EPSILON)).mul_(rates))


class Plateau:
    """Halves a network's learning rates each time its loss has not fallen for long.

    The same as `torch.optim.lr_scheduler.ReduceLROnPlateau` with a factor of 0.5, a threshold of 0, and a patience one
    less: torch halves only at one bad look more than its patience.

    Args:
        patience: how many losses in a row, none below the least before them, are too many.
        losses: (networks,), of the right type and device; their values do not matter.
    """

    def __init__(self, patience: int, losses: Tensor):
        self.patience = patience
        self.best = torch.full_like(losses, torch.inf)
        self.waited = torch.zeros_like(losses)

    def __call__(self, rates: Tensor, losses: Tensor) -> None:
        """Take note of losses (networks,), and halve rows of rates (networks, numbers) where it is time."""
        fell = losses < self.best
        self.best.copy_(torch.where(fell, losses, self.best))
        self.waited.add_(1).masked_fill_(fell, 0)
        late = self.waited == self.patience
        rates[late] /= 2
        self.waited[late] = 0

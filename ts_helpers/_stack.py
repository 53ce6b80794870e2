"""Parameters of networks as rows of a matrix, and functions of all networks at once; how they learn is in `fit`."""

import math
from collections.abc import Callable, Mapping, Sequence
from fnmatch import fnmatchcase

import torch
from torch import Tensor, nn
from torch.func import functional_call

from ts_helpers._check import as_tensor, instance
from ts_helpers._checkpoint import Identity

Metric = Callable[..., Tensor]
PerNetwork = float | Sequence[float] | Tensor

STATES = 8  # arrays (time, batch, units) kept for the backward pass, units at most the square root of the parameters


def described_together(nets: Sequence[nn.Module], identity: Identity) -> dict[str, str]:
    """Return what the networks are besides parameters and buffers; refuse those that cannot be trained together."""
    if not nets:
        raise ValueError("networks must hold one or more networks, got none")
    for network in nets:
        instance(nn.Module, "modules", networks=network)
    first, owners = identity.network(nets[0]), dict[int, int]()
    for number, network in enumerate(nets if len(nets) > 1 else ()):
        for path, module in network.named_modules():
            if isinstance(module, nn.RNNBase):
                what = f"{path or 'the network'}, an nn.{type(module).__name__}, for several networks at once"
                how = "call fit for each network by itself, or build it of a cell and `cells.unroll`"
                raise ValueError(f"torch cannot run {what}: {how}")
        for path, tensor in (*network.named_parameters(), *network.named_buffers()):
            owner = owners.setdefault(tensor.data_ptr() or id(tensor), number)
            if owner != number:
                raise ValueError(f"networks {owner} and {number} share the tensor {path!r}: copy.deepcopy one of them")
        other = identity.network(network)
        path = next((path for path in {**first, **other} if first.get(path) != other.get(path)), None)
        if path:
            got = f"number {number} differs from the first in {path!r}; train it apart, or make that a buffer"
            raise ValueError(f"networks must be of one architecture, all but parameters and buffers equal: {got}")
    return first


class Stack:
    """Parameters of networks as a matrix, a row each; a network ``alone`` is called as it is and keeps its buffers."""

    def __init__(self, networks: Sequence[nn.Module], alone: bool = False):
        self.networks, self.alone = networks, alone
        self.dim = 1 if alone else 2  # of sequences in data
        self.parameters = [list(network.parameters()) for network in networks]
        self.names, first = [name for name, _ in networks[0].named_parameters()], self.parameters[0]
        self.shapes, self.sizes = [p.shape for p in first], [p.numel() for p in first]
        self.values = torch.stack([torch.cat([p.detach().flatten() for p in each]) for each in self.parameters])
        learned = [torch.cat([p.new_full((p.numel(),), p.requires_grad) for p in each]) for each in self.parameters]
        self.trainable = torch.stack(learned)
        several = [] if alone else [dict(network.named_buffers()) for network in networks]
        self.stacked = {key: torch.stack([each[key].detach() for each in several]) for key in (*several, {})[0]}
        self.base = networks[0] if alone else _Call(networks[0])

    @property
    def buffers(self) -> dict[str, Tensor]:
        """The buffers as they are now, with the networks as first dimension."""
        return {key: b.detach()[None] for key, b in self.base.named_buffers()} if self.alone else self.stacked

    def footprint(self, data: Sequence[Tensor], batch_size: int | None) -> float:
        """Return about how many bytes a step of one network takes: minibatch, states, and the optimiser's numbers."""
        size, numbers = self.values.shape[1], 4.0 * self.values.shape[1]
        for tensor in data:
            states = STATES * math.sqrt(size) * math.prod(tensor.shape[1:3]) if tensor is data[0] else 0.0
            share = 1.0 if batch_size is None or tensor.ndim < 3 else batch_size / tensor.shape[2]
            numbers += share * (tensor[0].numel() + states)
        return numbers * self.values.element_size()

    def column(self, value: PerNetwork, what: str) -> Tensor:
        """Return one number, or one a network, as a column (networks, 1)."""
        column = as_tensor(what, value, dtype=self.values.dtype, device=self.values.device).reshape(-1, 1)
        if len(column) not in (1, n := len(self.networks)):
            raise ValueError(f"{what} must be one number or one for each of {n} networks, got {len(column)}")
        return column

    def spread(self, given: Mapping[str, PerNetwork], default: float, what: str) -> Tensor:
        """Return a matrix (networks, numbers) of what was given for names of parameters, else the default."""
        instance(Mapping, "numbers by name of parameter", **{what: given})
        parts = torch.full_like(self.values, default).split(self.sizes, 1)
        for pattern, value in given.items():
            fitting = [part for part, name in zip(parts, self.names, strict=True) if fnmatchcase(name, pattern)]
            if not fitting:
                raise ValueError(f"no parameter is called {pattern!r}; there are {', '.join(self.names)}")
            for part in fitting:
                part.copy_(self.column(value, pattern).expand_as(part))
        return torch.cat(parts, 1)

    def measure(self, function: Metric, data: Sequence[Tensor]) -> Tensor:
        """Return ``function(network, *data)`` of every network, stacked."""
        if self.alone:
            found = function(self.base, *data)
            instance(Tensor, "a Tensor: a loss and each metric return one", found=found)
            return found[None]
        parts = self.values.split(self.sizes, 1)
        shaped = zip(self.names, parts, self.shapes, strict=True)
        tensors = {name: part.unflatten(1, shape) if shape else part[:, 0] for name, part, shape in shaped}
        tensors = {f"network.{name}": tensor for name, tensor in (tensors | self.buffers).items()}

        def one(tensors: dict[str, Tensor], data: tuple[Tensor, ...]) -> Tensor:
            return functional_call(self.base, tensors, (function, *data))

        return torch.vmap(one)(tensors, tuple(data))

    def gradient(self, loss: Metric, data: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Return the losses (networks,) and their gradients (networks, numbers)."""
        parameters = self.parameters[0] if self.alone else [self.values.requires_grad_(True)]
        losses, learned = self.measure(loss, data), [p for p in parameters if p.requires_grad]
        if not losses.requires_grad:
            raise ValueError("loss must depend on a parameter that is learned, got one that has no gradient")
        grads = iter(torch.autograd.grad(losses.sum(), learned, allow_unused=True, materialize_grads=True))
        each = [next(grads) if p.requires_grad else p.detach() for p in parameters]
        self.values.requires_grad_(False)
        return losses.detach(), torch.cat([grad.flatten() for grad in each])[None] if self.alone else each[0]

    def write_back(self, values: Tensor, buffers: Mapping[str, Tensor]) -> None:
        """Put rows and buffers into the networks; in place, but for buffers whose shape has changed."""
        with torch.no_grad():
            for i, network in enumerate(self.networks):
                for p, part in zip(self.parameters[i], values[i].split(self.sizes), strict=True):
                    p.copy_(part.view_as(p))
                for key, buffer in buffers.items():
                    path, _, name = key.rpartition(".")
                    module = network.get_submodule(path)
                    there = module._buffers[name]
                    if there is not None and there.shape == buffer[i].shape:
                        there.copy_(buffer[i])
                    else:
                        setattr(module, name, buffer[i].clone())


class _Call(nn.Module):
    """Gives a function of a network the network whose parameters `functional_call` has put in."""

    def __init__(self, network: nn.Module):
        super().__init__()
        self.network = network
        modules = [(path, module._buffers) for path, module in network.named_modules()]
        self.held = [(buffers, key, f"{path}.{key}".lstrip(".")) for path, buffers in modules for key in buffers]

    def forward(self, function: Metric, *data: Tensor) -> Tensor:
        """Return ``function(network, *data)``."""
        before = [buffers[key] for buffers, key, _ in self.held]
        found = function(self.network, *data)
        for tensor, (buffers, key, path) in zip(before, self.held, strict=True):
            if buffers[key] is not tensor:
                how = "change it in place (copy_), or call fit for each network by itself"
                raise ValueError(f"buffer {path!r} was assigned anew, which a stack of networks loses: {how}")
        return found

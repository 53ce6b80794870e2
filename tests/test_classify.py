import pytest
import torch

from ts_helpers.datasets.pixels import Part
from ts_helpers.papers.tallec2018 import classify
from ts_helpers.papers.tallec2018.classify import cross_entropy, epochs, wrong


class Echo(torch.nn.Module):
    """Scores are the inputs."""

    def forward(self, x):
        return x


def task(n, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(3, n, 4, generator=generator), torch.randint(0, 4, (n,), generator=generator)


def test_cross_entropy_is_that_of_the_last_step():
    x, y = task(20)
    mean = -sum(x[-1, i].log_softmax(0)[y[i]] for i in range(20)) / 20
    assert cross_entropy(Echo(), x, y).item() == pytest.approx(mean.item(), rel=1e-6)


@pytest.mark.parametrize("n", [1, 10, 11])
def test_wrong_is_a_share_of_all_sequences_however_many_at_once(n, monkeypatch):
    monkeypatch.setattr(classify, "AT_ONCE", 5)
    x, y = task(n)
    misses = sum(int(max(range(4), key=lambda k: x[-1, i, k]) != y[i]) for i in range(n))
    assert wrong(Echo(), x, y).item() == misses / n


def numbered(n):
    return Part(torch.arange(n).repeat(3, 1)[..., None], torch.arange(n))


def test_epoch_has_each_image_once_with_its_own_class_and_another_order_each_time():
    batch, steps = epochs(numbered(12), 4, 7)
    assert steps == 3
    seen = []
    for step in range(6):
        x, y = batch(step)
        assert x.shape == (3, 4, 1)
        assert bool((x[..., 0] == y).all())
        seen += y.tolist()
    assert sorted(seen[:12]) == sorted(seen[12:]) == list(range(12))
    assert seen[:12] != seen[12:] != sorted(seen[12:])


def test_batch_is_the_same_whenever_it_is_asked_for_and_another_with_another_seed():
    batch, _ = epochs(numbered(50), 8, 7, 1)
    later, first, again = (batch(step)[1] for step in (20, 3, 20))
    assert torch.equal(later, again)
    assert not torch.equal(later, first)
    assert not torch.equal(later, epochs(numbered(50), 8, 7, 2)[0](20)[1])


def test_what_is_left_over_is_left_out_of_an_epoch():
    batch, steps = epochs(numbered(11), 4, 0)
    assert steps == 2
    assert len({*batch(0)[1].tolist(), *batch(1)[1].tolist()}) == 8
    assert len(batch(2)[1]) == 4


def test_batch_larger_than_all_is_refused():
    with pytest.raises(ValueError, match="size must be at most 3, the number of images, got 4"):
        epochs(numbered(3), 4, 0)

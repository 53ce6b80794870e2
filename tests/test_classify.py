import pytest
import torch

from ts_helpers.datasets.pixels import Part
from ts_helpers.papers.tallec2018 import classify
from ts_helpers.papers.tallec2018.classify import cross_entropy, error_rate, shuffled_batches


@pytest.mark.parametrize("n", [1, 10, 11])
def test_loss_and_error_rate_are_those_of_the_last_step_however_many_at_once(n, monkeypatch):
    monkeypatch.setattr(classify, "AT_ONCE", 5)
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(3, n, 4, generator=generator), torch.randint(0, 4, (n,), generator=generator)
    scores = torch.nn.Identity()
    mean = -sum(x[-1, i].log_softmax(0)[y[i]] for i in range(n)) / n
    assert cross_entropy(scores, x, y).item() == pytest.approx(mean.item(), rel=1e-6)
    misses = sum(int(max(range(4), key=lambda k: x[-1, i, k]) != y[i]) for i in range(n))
    assert error_rate(scores, x, y).item() == misses / n


def numbered(n):
    return Part(torch.arange(n).repeat(3, 1)[..., None], torch.arange(n))


@pytest.mark.parametrize(("n", "n_steps"), [(12, 3), (11, 2)])
def test_epoch_has_each_image_once_with_its_class_in_an_order_of_its_own_but_for_what_is_left_over(n, n_steps):
    batch, steps = shuffled_batches(numbered(n), 4, 7)
    assert steps == n_steps
    seen = []
    for step in range(2 * n_steps):
        x, y = batch(step)
        assert x.shape == (3, 4, 1)
        assert bool((x[..., 0] == y).all())
        seen += y.tolist()
    first, second = seen[: 4 * n_steps], seen[4 * n_steps :]
    assert len({*first}) == len({*second}) == 4 * n_steps
    assert first != second and first != sorted(first)


def test_batch_is_the_same_whenever_it_is_asked_for_and_another_with_another_seed():
    batch, _ = shuffled_batches(numbered(50), 8, 7, 1)
    later, first, again = (batch(step)[1] for step in (20, 3, 20))
    assert torch.equal(later, again)
    assert not torch.equal(later, first)
    assert not torch.equal(later, shuffled_batches(numbered(50), 8, 7, 2)[0](20)[1])


def test_batch_larger_than_all_is_refused():
    with pytest.raises(ValueError, match="batch_size must be at most 3, the number of images, got 4"):
        shuffled_batches(numbered(3), 4, 0)

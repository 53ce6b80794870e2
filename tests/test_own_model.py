"""The tutorial: its own lines are few, run outside of the notebook, and find what the recordings were made with."""

import matplotlib
import pytest
import torch

from ts_helpers.book.run import Job

CELLS = [c for c in Job("synthesis/your-own-model").notebook.cells if c.cell_type == "code"]
BOOK = [c.source for c in CELLS if c.metadata.get("tags")]
OWN = [c.source for c in CELLS if not c.metadata.get("tags")]


@pytest.fixture(scope="module")
def names(tmp_path_factory):
    """What stands in the names of the page after its cells ran one after the other, as they are printed."""
    matplotlib.use("agg")
    found, threads = {}, torch.get_num_threads()
    with pytest.MonkeyPatch.context() as patch, matplotlib.rc_context():
        patch.setenv("TS_RECORDS", str(tmp_path_factory.mktemp("records")))
        for cell in CELLS:
            exec(cell.source, found)
    torch.set_num_threads(threads)
    matplotlib.pyplot.close("all")
    return found


def test_own_code_has_fewer_than_sixty_lines_and_only_what_is_the_books_is_not_counted():
    assert 30 < len([line for source in OWN for line in source.splitlines() if line.strip()]) < 60
    parameters, settings, record = BOOK
    assert 'scale = "book"' in parameters
    assert "Chapter(" in settings
    assert "chapter.save(" in record
    assert not {"def", "class", "torch.optim"} & set(" ".join(BOOK).split())


def test_dial_on_a_parameter_of_ones_own_is_read_and_set(names):
    average = names["average"]
    assert [name for name, _ in average.named_parameters()] == ["parametrizations.alpha.original"]
    torch.testing.assert_close(average.alpha, torch.tensor([0.5, 0.05]))
    torch.testing.assert_close(average.parametrizations.alpha.original, -torch.log(average.alpha))
    after = names["unroll"](average, torch.ones(20, 1, 2))[-1, 0]
    torch.testing.assert_close(after, 1 - (1 - torch.tensor([0.5, 0.05])) ** 20)


def test_ordinary_loop_finds_every_time_constant_and_the_read_out_and_leaves_the_wiring(names):
    truth, start, *_ = names["problem"](names["seed"])
    network = names["network"]
    found, true, before = (1 / model.cell.alpha.detach() for model in (network, truth, start))
    assert (before / true - 1).abs().max() > 0.5
    torch.testing.assert_close(found, true, rtol=0.2, atol=0)
    assert torch.equal(network.cell.U, truth.cell.U)
    assert torch.equal(network.cell.W, truth.cell.W)
    assert (network.V - truth.V).abs().max() < 0.2 < (start.V - truth.V).abs().max()


def test_many_seeds_at_once_find_nearly_all_and_the_first_is_that_of_the_loop(names):
    tau, true = names["tau"], names["true"]
    assert tau.shape[0] == true.shape[0] == names["s"].n_networks > 2
    near = ((tau / true[:, None] - 1).abs() < 0.2).float().mean((0, 2))
    assert near[0] < 0.5
    assert near[-1] > 0.95
    torch.testing.assert_close(tau[0, -1], 1 / names["network"].cell.alpha.detach(), rtol=0.02, atol=0)


def test_lstm_forgets_in_times_spread_over_the_range_asked_for(names):
    lstm = names["lstm"]
    i, f, *_ = (lstm.bias_ih_l0 + lstm.bias_hh_l0).detach().chunk(4)
    times = 1 + f.exp()
    assert 2 <= times.min() < 30
    assert 170 < times.max() <= 200
    assert torch.equal(i, -f)

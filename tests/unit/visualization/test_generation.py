import numpy as np
import torch

from tests.integration.tiny_world import tiny_tokenizer
from util.images import to_uint8
from visualization.generation import GREY, images_so_far, step_titles, strip_steps


def test_undecided_cells_are_grey_and_no_others() -> None:
    tokenizer, draws = tiny_tokenizer().eval(), torch.Generator().manual_seed(0)
    # Image i has i tokens.
    tokens = torch.randint(32, (17, 16), generator=draws)
    ranks = torch.rand(17, 16, generator=draws).argsort(dim=1)
    tokens[ranks >= torch.arange(17)[:, None]] = -1
    images = images_so_far(tokenizer, tokens)
    assert images.dtype == torch.uint8 and images.shape == (17, 16, 16, 3)
    grey = (images == torch.tensor(GREY)).all(dim=-1)
    cells = grey.view(17, 4, 4, 4, 4).transpose(2, 3).reshape(17, 16, 16)
    assert torch.equal(cells.all(dim=-1), tokens < 0) and not cells[tokens >= 0].any()
    # An image depends on no other, and a complete one is decoded as ever.
    alone = torch.cat([images_so_far(tokenizer, row[None]) for row in tokens])
    assert (alone.int() - images.int()).abs().max() <= 1
    with torch.no_grad():
        assert torch.equal(alone[-1:], to_uint8(tokenizer.decode_code(tokens[-1:])))


def test_strips_show_first_and_last_step() -> None:
    assert strip_steps(20, 5) == [0, 5, 10, 14, 19]
    for steps in range(2, 60):
        found = strip_steps(steps, 12)
        assert len(found) == min(steps, 12) and (found[0], found[-1]) == (0, steps - 1)
        assert np.diff(found).min() > 0 and np.ptp(np.diff(found)) <= 1
    assert step_titles([1, 15]) == ["step 1 of 2: 1 of 16 tokens", "step 2 of 2: 16 of 16 tokens"]

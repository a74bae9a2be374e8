import numpy as np
import torch

from orders.group_sizes import group_sizes
from orders.locality import random_orders
from tests.integration.tiny_world import tiny_tokenizer
from util.images import to_uint8
from visualization.generation import GREY, images_so_far, step_titles, strip_steps


def test_undecided_cells_are_grey_and_no_others() -> None:
    tokenizer = tiny_tokenizer().eval()
    tokens = torch.randint(32, (3, 16), generator=torch.Generator().manual_seed(0))
    orders = torch.from_numpy(random_orders(3, 16, seed=4))
    for known in range(17):
        so_far = torch.full_like(tokens, -1)
        decided = orders[:, :known]
        so_far.scatter_(1, decided, tokens.gather(1, decided))
        images = images_so_far(tokenizer, so_far)
        assert images.dtype == torch.uint8 and images.shape == (3, 16, 16, 3)
        grey = (images == torch.tensor(GREY)).all(dim=-1)
        cells = grey.view(3, 4, 4, 4, 4).transpose(2, 3).reshape(3, 16, 16)
        assert torch.equal(cells.all(dim=-1), so_far < 0)
        assert not cells[so_far >= 0].any()


def test_complete_grids_are_decoded_as_ever() -> None:
    tokenizer = tiny_tokenizer().eval()
    tokens = torch.randint(32, (2, 16))
    with torch.no_grad():
        expected = to_uint8(tokenizer.decode_code(tokens))
    assert torch.equal(images_so_far(tokenizer, tokens), expected)


def test_an_image_does_not_depend_on_the_others() -> None:
    tokenizer = tiny_tokenizer().eval()
    tokens = torch.randint(-1, 32, (4, 16), generator=torch.Generator().manual_seed(1))
    alone = torch.cat([images_so_far(tokenizer, row[None]) for row in tokens])
    assert (alone.int() - images_so_far(tokenizer, tokens).int()).abs().max() <= 1


def test_strips_show_first_and_last_step() -> None:
    assert strip_steps(5, 12) == [0, 1, 2, 3, 4]
    assert strip_steps(20, 5) == [0, 5, 10, 14, 19]
    assert strip_steps(256, 1) == [255]
    for steps in range(1, 60):
        for most in range(2, 14):
            found = strip_steps(steps, most)
            assert len(found) == min(steps, most) == len(set(found))
            assert (found[0], found[-1]) == (0, steps - 1)
            assert np.ptp(np.diff(found)) <= 1 if len(found) > 2 else True


def test_titles_count_tokens() -> None:
    titles = step_titles(group_sizes(64, 12))
    assert titles[0] == "step 1 of 12: 1 of 64 tokens"
    assert titles[-1] == "step 12 of 12: 64 of 64 tokens"

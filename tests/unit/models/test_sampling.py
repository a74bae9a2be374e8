import pytest
import torch

from models.sampling import SamplingSettings, draw, filtered_probabilities


def test_draw_is_the_inverse_cdf() -> None:
    probs = torch.tensor([0.0, 0.25, 0.0, 0.5, 0.25, 0.0])
    uniforms = torch.tensor([0.0, 0.2499, 0.25, 0.7499, 0.75, 0.99999])
    assert draw(probs.expand(6, -1), uniforms).tolist() == [1, 1, 3, 3, 4, 4]
    # Never a zero where rounding leaves a gap.
    assert draw(torch.tensor([[0.3, 0.6999, 0.0]]), torch.tensor([0.99999994])).tolist() == [1]


@pytest.mark.parametrize(
    ("options", "probs", "kept"),
    [
        ({"top_k": 2}, [0.4, 0.25, 0.25, 0.1], [0.4 / 0.9, 0.25 / 0.9, 0.25 / 0.9, 0.0]),  # a tie
        ({"top_p": 0.6}, [0.5, 0.3, 0.2], [0.625, 0.375, 0.0]),  # the one that crosses it stays
        ({"top_p": 0.5}, [0.5, 0.25, 0.25], [2 / 3, 1 / 3, 0.0]),  # mass before may equal it
        ({"top_p": 0.0}, [0.1, 0.6, 0.3], [0.0, 1.0, 0.0]),
        ({"temperature": 0.0}, [0.1, 0.46, 0.44], [0.0, 1.0, 0.0]),  # greedy
    ],
)
def test_filters(options: dict, probs: list[float], kept: list[float]) -> None:
    logits = torch.tensor([probs]).log()
    found = filtered_probabilities(logits, SamplingSettings(**options))
    assert torch.allclose(found, torch.tensor([kept]))
    assert ((found > 0) == (torch.tensor([kept]) > 0)).all()


def test_bad_settings_are_named() -> None:
    bad = {"cfg_schedule": "cosine", "cfg": -1.0, "temperature": -0.1, "top_k": -1, "top_p": 1.5}
    for name, value in (*bad.items(), ("cfg", float("nan"))):
        with pytest.raises(ValueError, match=f"^{name}: found"):
            SamplingSettings(**{name: value})

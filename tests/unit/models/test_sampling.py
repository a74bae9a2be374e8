import numpy as np
import pytest
import torch

from models.sampling import SamplingSettings, draw, filtered_probabilities


def test_draw_is_the_inverse_cdf() -> None:
    probs = torch.tensor([0.0, 0.25, 0.0, 0.5, 0.25, 0.0])
    uniforms = torch.tensor([0.0, 0.2499, 0.25, 0.7499, 0.75, 0.99999])
    assert draw(probs.expand(6, -1), uniforms).tolist() == [1, 1, 3, 3, 4, 4]
    # Never a zero where rounding leaves a gap.
    assert draw(torch.tensor([[0.3, 0.6999, 0.0]]), torch.tensor([0.99999994])).tolist() == [1]


def test_draw_frequencies_follow_the_probabilities() -> None:
    probs = torch.tensor([0.1, 0.2, 0.3, 0.4])
    uniforms = torch.from_numpy(np.random.default_rng(0).random(40_000, dtype=np.float32))
    counts = draw(probs.expand(len(uniforms), -1), uniforms).bincount(minlength=4)
    error = (probs * (1 - probs) / len(uniforms)).sqrt()
    assert ((counts / len(uniforms) - probs).abs() < 4.5 * error).all()


@pytest.mark.parametrize(
    ("options", "probs", "kept"),
    [
        ({"top_k": 2}, [0.4, 0.25, 0.25, 0.1], [0.4 / 0.9, 0.25 / 0.9, 0.25 / 0.9, 0.0]),  # a tie
        ({"top_p": 0.6}, [0.5, 0.3, 0.2], [0.625, 0.375, 0.0]),  # the one that crosses it stays
        ({"top_p": 0.5}, [0.5, 0.25, 0.25], [2 / 3, 1 / 3, 0.0]),  # mass before may equal it
        ({"top_p": 0.0}, [0.1, 0.6, 0.3], [0.0, 1.0, 0.0]),
    ],
)
def test_filters(options: dict, probs: list[float], kept: list[float]) -> None:
    logits = torch.tensor([probs]).log()
    found = filtered_probabilities(logits, SamplingSettings(**options))
    assert torch.allclose(found, torch.tensor([kept]))
    assert ((found > 0) == (torch.tensor([kept]) > 0)).all()


def test_zero_temperature_is_greedy() -> None:
    logits = torch.randn(5, 50, generator=torch.Generator().manual_seed(1))
    probs = filtered_probabilities(logits, SamplingSettings(temperature=0.0))
    assert torch.isfinite(probs).all()
    assert torch.equal(probs.argmax(-1), logits.argmax(-1))


def test_bad_settings_are_named() -> None:
    bad = {"cfg_schedule": "cosine", "cfg": -1.0, "temperature": -0.1, "top_k": -1, "top_p": 1.5}
    for name, value in (*bad.items(), ("cfg", float("nan"))):
        with pytest.raises(ValueError, match=f"^{name}: found"):
            SamplingSettings(**{name: value})

from pathlib import Path

import numpy as np
from PIL import Image

from visualization.drawing import write_picture
from visualization.scalar_history import Curve, History
from visualization.training import final_scores, plot_training


def curve(*points: tuple[int, float]) -> Curve:
    steps, values = zip(*points, strict=True)
    return Curve(np.array(steps), np.array(values, dtype=np.float64))


CURVES = {
    "train/loss": curve((0, 5), (10, 4), (20, 3), (30, 2)),
    "train/lr": curve((0, 0), (10, 1e-3), (20, 1e-3), (30, 5e-4)),
    "train/grad_norm": curve((0, 1)),
    "epoch/loss": curve((9, 4.5), (19, 3.5), (29, 2.5)),
    "eval/num_images-5K": curve((9, 5000), (29, 5000)),
    "eval/fid-5K": curve((9, 50), (29, 20)),
    "eval/inception_score_mean-5K": curve((9, 20), (29, 80)),
    "eval/inception_score_std-5K": curve((9, 2), (29, 3)),
}


def test_panels_over_epochs() -> None:
    figure = plot_training(History(CURVES, [20], {"eval/fid": 2.5}))
    loss, rate, fid, inception = figure.axes
    at_steps, means = loss.get_lines()[:2]
    assert at_steps.get_xdata().tolist() == [0.1, 1.1, 2.1, 3.1]
    assert means.get_xdata().tolist() == [1, 2, 3]
    assert means.get_ydata().tolist() == [4.5, 3.5, 2.5]
    assert loss.get_xlabel() == "epoch"
    assert rate.get_lines()[0].get_ydata().max() == 1e-3
    assert all(axes.get_lines()[-1].get_xdata() == [2, 2] for axes in figure.axes)  # resumed
    assert fid.get_ylabel() == "FID\nlower is better"
    assert fid.get_lines()[0].get_ydata().tolist() == [50, 20]
    names = [text.get_text() for text in fid.get_legend().get_texts()]
    assert names == ["--evaluate: FID", "FID-5K"]
    assert inception.get_ylabel() == "IS-5K\nhigher is better" and inception.get_legend() is None
    (bars,) = inception.containers
    spreads = [segment[:, 1].tolist() for segment in bars.lines[2][0].get_segments()]
    assert spreads == [[18, 22], [77, 83]]
    assert figure.get_suptitle() == "--evaluate: FID 2.5"


def test_a_run_without_a_whole_epoch_has_steps(tmp_path: Path) -> None:
    curves = {tag: CURVES[tag] for tag in ("train/loss", "train/lr")}
    curves |= dict.fromkeys(("eval/frechet_distance_digits-500", "eval/another-7"), curve((9, 5)))
    figure = plot_training(History(curves, [], {}))
    loss, _, *scores = figure.axes
    assert loss.get_xlabel() == "step"
    assert loss.get_lines()[0].get_xdata().tolist() == [1, 11, 21, 31]
    digits = "Frechet distance-500 (digit features)\nlower is better"
    assert [axes.get_ylabel() for axes in scores] == [digits, "another-7\n"]
    write_picture(figure, tmp_path / "run.png")
    with Image.open(tmp_path / "run.png") as image:
        assert image.format == "PNG"


def test_final_scores_in_a_line() -> None:
    final = {"eval/num_images": 50000, "eval/fid": 2.4049}
    final |= {"eval/inception_score_mean": 284.51, "eval/inception_score_std": 3.123}
    assert final_scores(History({}, [], final)) == "FID 2.405, IS 284.5 ± 3.1"

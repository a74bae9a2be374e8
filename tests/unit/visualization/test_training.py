import numpy as np

from visualization.scalar_history import Curve, History
from visualization.training import plot_training


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
    figure = plot_training(History(CURVES, [20], {"eval/fid": 2.4049}))
    loss, rate, fid, inception = figure.axes
    at_steps, means = (line.get_data() for line in loss.get_lines()[:2])
    np.testing.assert_array_equal(at_steps, [[0.1, 1.1, 2.1, 3.1], [5, 4, 3, 2]])
    np.testing.assert_array_equal(means, [[1, 2, 3], [4.5, 3.5, 2.5]])
    assert loss.get_xlabel() == "epoch"
    assert rate.get_lines()[0].get_ydata().max() == 1e-3
    assert all(axes.get_lines()[-1].get_xdata() == [2, 2] for axes in figure.axes)  # resumed
    assert fid.get_ylabel() == "FID\nlower is better"
    names = [text.get_text() for text in fid.get_legend().get_texts()]
    assert names == ["--evaluate: FID", "FID-5K"]
    assert inception.get_ylabel() == "IS-5K\nhigher is better" and inception.get_legend() is None
    (bars,) = inception.containers
    spreads = [segment[:, 1].tolist() for segment in bars.lines[2][0].get_segments()]
    assert spreads == [[18, 22], [77, 83]]
    assert figure.get_suptitle() == "--evaluate: FID 2.405"


def test_a_run_without_a_whole_epoch_has_steps() -> None:
    curves = {tag: CURVES[tag] for tag in ("train/loss", "train/lr")}
    curves |= dict.fromkeys(("eval/frechet_distance_digits-500", "eval/another-7"), curve((9, 5)))
    final = {"eval/inception_score_mean": 284.51, "eval/inception_score_std": 3.123}
    figure = plot_training(History(curves, [], final))
    loss, _, *scores = figure.axes
    assert loss.get_xlabel() == "step"
    assert loss.get_lines()[0].get_xdata().tolist() == [1, 11, 21, 31]
    digits = "Frechet distance-500 (digit features)\nlower is better"
    assert [axes.get_ylabel() for axes in scores] == [digits, "another-7\n"]
    assert figure.get_suptitle() == "--evaluate: IS 284.5\u00a0±\u00a03.1"

import json
import shlex
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from orders.locality import random_orders
from orders.order_file import write_orders
from scripts import search_cfg
from tests.commands import succeed
from tests.unit.evaluation.scoring_files import random_images, write_folder
from training.flags import build_parser
from util.errors import UserError
from util.folder_lock import folder_lock


@pytest.fixture(scope="module")
def flags(world, scored, tmp_path_factory):
    """The line of a small search, as a function of the folder it writes and of more flags."""
    real = write_folder(tmp_path_factory.mktemp("real"), random_images(70, seed=3))

    def of(output: Path, *more: object) -> list[str]:
        words = [*world.model_flags(), *scored, "--fid_stats", real, "--output_dir", output]
        words += ["--cfgs", 3, 1, "--temperatures", 1, "--generation_steps", 4]
        return list(map(str, [*words, "--num_images", 12, "--num_workers", 0, *more]))

    return of


def read(output: Path) -> list[dict]:
    return json.loads((output / "search.json").read_text())["settings"]


def parse_launch(printed: str) -> object:
    words = shlex.split(printed.splitlines()[-1])
    return build_parser().parse_args(words[words.index("main_lpd.py") + 1 :])


def test_a_search_is_taken_up_and_names_the_best(flags, tmp_path, made, capsys):
    output = tmp_path / "out"
    search_cfg.main(flags(output))
    printed = capsys.readouterr().out
    records = read(output)
    assert [(record["cfg"], record["temperature"]) for record in records] == [(1, 1), (3, 1)]
    distances = [record["frechet_distance_digits"] for record in records]
    assert distances[0] != distances[1]
    best = records[int(np.argmin(distances))]
    assert f"\nbest: cfg {best['cfg']:g}, temperature 1 (Frechet distance-12 (digit" in printed
    args = parse_launch(printed)
    assert args.evaluate
    assert (args.cfg, args.temperature, args.generation_steps) == (best["cfg"], 1, 4)
    assert args.num_images == 12  # 50,000 is no multiple of three classes
    assert args.output_dir == str(output / "best")
    assert not (output / "cfg1_temperature1" / "images").exists()
    assert len(made) == 24
    with Image.open(output / "search.png") as plot:
        assert plot.size[0] > 500
    # Two processes find the same.
    done = succeed("scripts/search_cfg.py", *flags(tmp_path / "two"), processes=2)
    assert done.stdout.count("best: ") == 1
    two = [record["frechet_distance_digits"] for record in read(tmp_path / "two")]
    assert two == pytest.approx(distances, rel=1e-4)
    # Taken up, it keeps what is there, of these settings.
    search_cfg.main(flags(output, "--temperatures", 1, 0.5, "--keep_images"))
    assert len(made) == 48
    records = read(output)
    assert [record["temperature"] for record in records] == [0.5, 0.5, 1, 1]
    assert [record["frechet_distance_digits"] for record in records[2:]] == distances
    assert len(list((output / "cfg1_temperature0.5" / "images").glob("*.png"))) == 12
    search_cfg.main(flags(output, "--seed", 2, "--cfgs", 1))
    assert len(made) == 60  # other samples


def test_the_launch_line_asks_for_no_more_images_than_orders(flags, tmp_path):
    orders = tmp_path / "orders.npy"
    write_orders(orders, random_orders(25, 64, seed=0))
    shown = {"fid": "FID"}
    for file, count in ((["--lpd_order_file", orders], 24), ([], 50_000)):
        line = flags(tmp_path, "--class_num", 2, *file)
        args = search_cfg.build_parser().parse_args(line)
        best = {"cfg": 2.5, "temperature": 0.9, "fid": 1.0, "scores": ["FID: 1"]}
        found = parse_launch(search_cfg.report(args, [best], shown))
        assert (found.cfg, found.temperature, found.num_images) == (2.5, 0.9, count)


def test_another_reference_of_the_same_name_counts(flags, tmp_path, made):
    for seed in (3, 4):
        real = write_folder(tmp_path / "real", random_images(20, seed=seed))
        search_cfg.main(flags(tmp_path / "out", "--fid_stats", real, "--cfgs", 1))
    assert len(made) == 24


def test_without_a_reference_the_score_decides(flags, tmp_path, made, capsys):
    line = flags(tmp_path, "--metrics", "is")
    search_cfg.main(line)
    records = read(tmp_path)
    best = max(records, key=lambda record: record["classifier_score_digits_mean"])["cfg"]
    assert f"best: cfg {best:g}," in capsys.readouterr().out
    args = search_cfg.build_parser().parse_args([*line, "--class_num", "2"])
    printed = search_cfg.report(args, records, {"classifier_score_digits_mean": "score"})
    assert parse_launch(printed).num_images == 50_000


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--feature_extractor", "none"], "--feature_extractor: found none, expected one that"),
        (["--metrics", "prc"], "--metrics: found prc, expected fid or is in it"),
        ([], "--output_dir: .* is in use by another run"),
    ],
)
def test_bad_input(flags, tmp_path, made, more, message):
    with folder_lock(tmp_path, "search"), pytest.raises(UserError, match=message):
        search_cfg.main(flags(tmp_path, *more))
    assert made == [] and not list(tmp_path.iterdir())

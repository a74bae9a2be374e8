"""The published settings, as the scripts pass them on (method sections 8 and 9)."""

import argparse
from pathlib import Path

import pytest

from orders.order_file import warn_of_steps
from tests.commands import ROOT, run_program
from training.flags import build_parser
from training.recipe import warn_of_schedule

EVALUATIONS = {
    "lpd_l_res256_steps20": ("lpd_l", 256, 20, 4.8, 2),
    "lpd_xl_res256_steps20": ("lpd_xl", 256, 20, 4.9, 2),
    "lpd_xxl_res256_steps20": ("lpd_xxl", 256, 20, 5.9, 3),
    "lpd_l_res256_steps32": ("lpd_l", 256, 32, 5.4, 2),
    "lpd_xl_res256_steps32": ("lpd_xl", 256, 32, 5.0, 2),
    "lpd_l_res512_steps48": ("lpd_l", 512, 48, 7.3, 4),
    "lpd_xl_res512_steps48": ("lpd_xl", 512, 48, 6.0, 4),
}
RECIPES = {
    "lpd_l_256": ("lpd_l", 256, 64, 450, 50, "constant+cosine", None),
    "lpd_xl_256": ("lpd_xl", 256, 32, 450, 50, "constant+cosine", None),
    "lpd_xxl_256": ("lpd_xxl", 256, 32, 450, 50, "constant+cosine", None),
    "lpd_l_512": ("lpd_l", 512, 16, 50, 1, "cosine", "lpd_l_256"),
    "lpd_xl_512": ("lpd_xl", 512, 8, 50, 1, "cosine", "lpd_xl_256"),
}


def flags(script: str, tmp_path: Path, *more: str, **variables: str) -> argparse.Namespace:
    """What a script would start `main_lpd.py` with: its Python only writes down its arguments."""
    stand_in = tmp_path / "python"
    stand_in.write_text('#!/bin/sh\n[ "$1" = -c ] && echo 8 || printf "%s\\n" "$@"\n')
    stand_in.chmod(0o755)
    done = run_program(
        "bash", ROOT / script, *more, **{"PYTHON": str(stand_in), "NPROC_PER_NODE": "8"} | variables
    )
    assert done.returncode == 0, done.stderr
    words = done.stdout.splitlines()
    assert words[:2] == ["-m", "torch.distributed.run"]
    assert words[words.index("--nproc_per_node") + 1] == "8"
    return build_parser().parse_args(words[words.index("main_lpd.py") + 1 :])


def test_there_is_a_script_for_every_line_and_no_other() -> None:
    for folder, expected in (("eval", EVALUATIONS), ("train", RECIPES)):
        assert {path.stem for path in (ROOT / "scripts" / folder).iterdir()} == expected.keys()


@pytest.mark.parametrize("name", EVALUATIONS)
def test_evaluation(name: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    args = flags(f"scripts/eval/{name}.sh", tmp_path)
    found = (args.model, args.img_size, args.generation_steps, args.cfg)
    *expected, repulsion = EVALUATIONS[name]
    assert found == tuple(expected)
    assert args.evaluate
    assert args.bf16
    assert (args.order, args.cfg_schedule, args.num_images) == ("lpd", "linear", 50000)
    assert (args.temperature, args.top_k, args.top_p) == (1.0, 0, 1.0)
    assert args.pretrained_ckpt == f"{args.model}_{args.img_size}"
    assert args.vqgan_path == "llamagen"
    orders = f"res{args.img_size}_steps{args.generation_steps}_repulsion{repulsion}"
    assert args.lpd_order_file == orders
    warn_of_steps(args.lpd_order_file, [args.generation_steps])
    assert not caplog.records
    assert args.output_dir == args.log_dir == f"output/eval/{name}"
    assert args.device == "cuda"


@pytest.mark.parametrize("name", RECIPES)
def test_recipe(name: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    args = flags(f"scripts/train/{name}.sh", tmp_path)
    found = (args.model, args.img_size, args.batch_size, args.epochs, args.warmup_epochs)
    assert (*found, args.lr_schedule, args.pretrained_ckpt) == RECIPES[name]
    assert args.bf16
    assert args.use_cached
    assert (args.group_sizes_list, args.flip_prob, args.accum_iter) == ("auto", 0.5, 1)
    assert (args.blr, args.min_lr, args.weight_decay, args.grad_clip) == (1e-4, 1e-5, 0.02, 3.0)
    assert (args.proj_dropout, args.attn_dropout, args.label_drop_prob) == (0.1, 0.0, 0.1)
    assert args.lr_decay_start_epoch == 400
    warn_of_schedule(args)
    assert not caplog.records
    assert args.cached_path == f"data/cache_{args.img_size}"
    assert args.output_dir == args.log_dir == args.resume == f"output/{name}"


def test_the_environment_and_more_flags_win(tmp_path: Path) -> None:
    variables = {
        "PRETRAINED_CKPT": "my weights.pth",
        "VQGAN_PATH": "vq.pt",
        "LPD_ORDER_FILE": "orders.npy",
        "FID_STATS": "a folder",
        "OUTPUT_DIR": "out",
        "NUM_IMAGES": "5000",
        "EVAL_BSZ": "8",
        "DEVICE": "cpu",
    }
    args = flags(
        "scripts/eval/lpd_l_res256_steps20.sh", tmp_path, "--cfg", "3", "--save_npz", **variables
    )
    found = (args.pretrained_ckpt, args.vqgan_path, args.lpd_order_file, args.fid_stats)
    assert found == ("my weights.pth", "vq.pt", "orders.npy", "a folder")
    assert (args.output_dir, args.num_images, args.eval_bsz) == ("out", 5000, 8)
    assert (args.device, args.cfg, args.save_npz) == ("cpu", 3, True)
    args = flags(
        "scripts/train/lpd_l_512.sh", tmp_path, "--epochs", "7", CACHED_PATH="c", ACCUM_ITER="4"
    )
    assert (args.cached_path, args.accum_iter, args.epochs) == ("c", 4, 7)


def test_scripts_start_from_any_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert flags("scripts/train/lpd_l_256.sh", tmp_path).model == "lpd_l"

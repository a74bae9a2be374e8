"""The published settings, as the scripts pass them on (method sections 8 and 9)."""

import argparse
import re
from pathlib import Path

import pytest

from orders.order_file import warn_of_steps
from tests.commands import ROOT, run_program
from training.flags import build_parser
from training.recipe import warn_of_schedule

# README's line of each: size of the network, image size, steps, r, guidance.
LINE = r"\| (LPD-X*L)-(\d+) \| (\d+) \| r = (\d) \| ([\d.]+) \| .* \| `(\w+)\.sh` \|"
EVALUATIONS = {found[-1]: found for found in re.findall(LINE, (ROOT / "README.md").read_text())}
RECIPES = {
    "lpd_l_256": ("lpd_l", 256, 64, 450, 50, "constant+cosine", None),
    "lpd_xl_256": ("lpd_xl", 256, 32, 450, 50, "constant+cosine", None),
    "lpd_xxl_256": ("lpd_xxl", 256, 32, 450, 50, "constant+cosine", None),
    "lpd_l_512": ("lpd_l", 512, 16, 50, 1, "cosine", "lpd_l_256"),
    "lpd_xl_512": ("lpd_xl", 512, 8, 50, 1, "cosine", "lpd_xl_256"),
}


@pytest.fixture
def flags(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """What a script would start `main_lpd.py` with: its Python only writes down its arguments."""
    stand_in = tmp_path / "python"
    stand_in.write_text('#!/bin/sh\n[ "$1" = -c ] && echo 8 || printf "%s\\n" "$@"\n')
    stand_in.chmod(0o755)
    monkeypatch.chdir(tmp_path)  # scripts start from any folder

    def run(script: str, *more: str, **variables: str) -> argparse.Namespace:
        variables = {"PYTHON": str(stand_in), "NPROC_PER_NODE": "8"} | variables
        done = run_program("bash", ROOT / "scripts" / script, *more, **variables)
        assert done.returncode == 0, done.stderr
        words = done.stdout.splitlines()
        assert words[:2] == ["-m", "torch.distributed.run"]
        assert words[words.index("--nproc_per_node") + 1] == "8"
        return build_parser().parse_args(words[words.index("main_lpd.py") + 1 :])

    return run


def holds(args: argparse.Namespace, **expected: object) -> None:
    assert {name: getattr(args, name) for name in expected} == expected


def test_there_is_a_script_for_every_line_and_no_other() -> None:
    assert len(EVALUATIONS) == 7
    for folder, expected in (("eval", EVALUATIONS), ("train", RECIPES)):
        assert {path.stem for path in (ROOT / "scripts" / folder).iterdir()} == expected.keys()


@pytest.mark.parametrize("name", EVALUATIONS)
def test_evaluation(name: str, flags, caplog: pytest.LogCaptureFixture) -> None:
    args = flags(f"eval/{name}.sh")
    model, size, steps, repulsion, cfg, _ = EVALUATIONS[name]
    model = model.lower().replace("-", "_")
    holds(args, model=model, img_size=int(size), generation_steps=int(steps), cfg=float(cfg))
    holds(args, evaluate=True, bf16=True, order="lpd", cfg_schedule="linear", num_images=50000)
    holds(args, temperature=1.0, top_k=0, top_p=1.0, vqgan_path="llamagen", device="cuda")
    orders = f"res{size}_steps{steps}_repulsion{repulsion}"
    holds(args, pretrained_ckpt=f"{model}_{size}", lpd_order_file=orders)
    holds(args, **dict.fromkeys(("output_dir", "log_dir"), f"output/eval/{name}"))
    warn_of_steps(orders, [args.generation_steps])
    assert not caplog.records


@pytest.mark.parametrize("name", RECIPES)
def test_recipe(name: str, flags, caplog: pytest.LogCaptureFixture) -> None:
    args = flags(f"train/{name}.sh")
    found = (args.model, args.img_size, args.batch_size, args.epochs, args.warmup_epochs)
    assert (*found, args.lr_schedule, args.pretrained_ckpt) == RECIPES[name]
    holds(args, bf16=True, use_cached=True, group_sizes_list="auto", flip_prob=0.5, accum_iter=1)
    holds(args, blr=1e-4, min_lr=1e-5, weight_decay=0.02, grad_clip=3.0, proj_dropout=0.1)
    holds(args, attn_dropout=0.0, label_drop_prob=0.1, lr_decay_start_epoch=400)
    holds(args, cached_path=f"data/cache_{args.img_size}")
    holds(args, **dict.fromkeys(("output_dir", "log_dir", "resume"), f"output/{name}"))
    warn_of_schedule(args)
    assert not caplog.records


def test_the_environment_and_more_flags_win(flags) -> None:
    paths = dict(pretrained_ckpt="my weights.pth", vqgan_path="vq.pt", fid_stats="a folder")
    paths |= dict(lpd_order_file="orders.npy", output_dir="out", device="cpu")
    variables = {"NUM_IMAGES": "5000", "EVAL_BSZ": "8"}
    variables |= {name.upper(): path for name, path in paths.items()}
    args = flags("eval/lpd_l_res256_steps20.sh", "--cfg", "3", "--save_npz", **variables)
    holds(args, **paths, num_images=5000, eval_bsz=8, cfg=3, save_npz=True)
    args = flags("train/lpd_l_512.sh", "--epochs", "7", CACHED_PATH="c", ACCUM_ITER="4")
    holds(args, cached_path="c", accum_iter=4, epochs=7)

"""Evaluate a checkpoint at several guidance strengths (and temperatures), and say which is best.

torchrun --nproc_per_node 8 scripts/search_cfg.py --cfgs 3 4 5 6 --num_images 5000 \
    --model lpd_l --pretrained_ckpt lpd_l_256 --vqgan_path llamagen --generation_steps 20 \
    --order lpd --bf16 --fid_stats fid_stats/adm_in256_stats.npz --output_dir output/search

All flags of `main_lpd.py --evaluate` hold. Run again, it goes on: settings with results are kept.
"""

from __future__ import annotations

import argparse
import json
import logging
import shlex
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import main_lpd
from evaluation.evaluation import Evaluation, build_evaluation
from evaluation.metrics import PUBLISHED_SAMPLES, Scores
from evaluation.samples import sample_settings
from hub.published import pinned_flags, resolve_flags
from models.sampling import warn_of_guidance
from orders.order_file import read_orders
from performance import timing as benchmark
from training.flags import build_parser as build_main_parser
from training.scalars import ScalarLog
from util import distributed, logs
from util.cli import Parser, number
from util.errors import UserError, require_writable_folder, run
from util.files import replacing, write_json
from util.folder_lock import folder_lock
from util.run_record import flags_of, launcher, record_run

logger = logging.getLogger("lpd")

# What `metrics.json` of a setting holds.
Record = dict[str, Any]
RESULTS_FILE, PLOT_FILE = "search.json", "search.png"
# In the folder of each setting: what decided its results.
SETTING_FILE = "setting.json"


def build_parser() -> Parser:
    """The flags of an evaluation, and what is searched."""
    parser = build_main_parser()
    parser.description = "Evaluate at several guidance strengths and say which is best."
    group = parser.add_argument_group("search")
    group.add_argument(
        "--cfgs", type=number(), nargs="+", required=True, help="guidance strengths to try"
    )
    group.add_argument(
        "--temperatures",
        type=number(),
        nargs="+",
        help="to try with each; by default --temperature",
    )
    group.add_argument(
        "--keep_images", action="store_true", help="keep the images of settings with results"
    )
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """Evaluate each setting, write results and plot, print the best."""
    parser = build_parser()
    args = parser.parse_args(argv)
    logs.setup()
    launch = distributed.read_launch(args)
    device = distributed.resolve_device(args.device, launch)
    resolve_flags(args)
    args.evaluate = True
    tokens = main_lpd.load_tokens(args)
    model, weights = main_lpd.build_model(args, tokens)
    model.to(device)
    evaluation = build_evaluation(args, model, tokens.tokenizer, device)
    if not evaluation.sampling.guided and set(args.cfgs) != {1.0}:  # not said of --cfg before
        warn_of_guidance(model.label_drop_prob, "--cfgs: found guidance")
    shown = shown_results(evaluation)
    folder = require_writable_folder(args.output_dir, "--output_dir")
    with ExitStack() as at_exit:
        distributed.start(launch, device)
        at_exit.callback(distributed.stop)
        main_lpd.on_main(lambda: at_exit.enter_context(folder_lock(folder, "search")))
        main_lpd.on_main(lambda: record_run(parser, pinned_flags(args), folder))
        evaluation = evaluation.with_reference()
        settings = sample_settings(args, evaluation, model, tokens.fingerprint)
        scoring = evaluation.scoring.digest()
        records = []
        for point in points(args):
            one = replace(evaluation, sampling=replace(evaluation.sampling, **point))
            wanted = {**settings, **point, **one.scoring.about(), "scoring": scoring}
            evaluate = partial(
                main_lpd.evaluate_checkpoint,
                model=model,
                weights=weights,
                evaluation=one,
                tokens=tokens,
                scalars=ScalarLog(None),
            )
            records.append(evaluate_point(args, point, wanted, evaluate))
            main_lpd.on_main(lambda: keep(folder, records, shown))
        if distributed.is_main():
            sys.stdout.write(report(args, records, shown))


def keep(folder: Path, records: Sequence[Record], shown: Sequence[Shown]) -> None:
    """Write the results so far, and their plot."""
    write_json({"settings": records}, folder / RESULTS_FILE)
    plot(records, shown, folder / PLOT_FILE)


def points(args: argparse.Namespace) -> Iterator[dict[str, float]]:
    """The settings to evaluate, each guidance strength once."""
    temperatures = args.temperatures or [args.temperature]
    for temperature, cfg in product(sorted(set(temperatures)), sorted(set(args.cfgs))):
        yield {"cfg": cfg, "temperature": temperature}


def evaluate_point(
    args: argparse.Namespace,
    point: dict[str, float],
    wanted: dict[str, Any],
    evaluate: Callable[[argparse.Namespace], None],
) -> Record:
    """The results of one setting: those an earlier run left, or new ones.

    Args:
        args: the run's flags.
        point: the setting.
        wanted: all that decides the results.
        evaluate: makes and scores the samples by the flags it is given.
    """
    name = "_".join(f"{key}{value:g}" for key, value in point.items())
    folder = Path(args.output_dir) / name
    known = distributed.gather(_known_results(folder, wanted))[0]
    if known is not None:
        logger.info("%s: results are there already", name)
        return known
    logger.info("%s", name)
    # New scores must not stand beside the settings of old ones, wherever this is stopped.
    main_lpd.on_main(lambda: (folder / SETTING_FILE).unlink(missing_ok=True))
    flags = argparse.Namespace(**{**vars(args), **point, "output_dir": str(folder)})
    evaluate(flags)

    def finish() -> None:
        write_json(wanted, folder / SETTING_FILE)
        if not args.keep_images:
            shutil.rmtree(folder / "images")

    main_lpd.on_main(finish)
    return distributed.gather(_known_results(folder, wanted))[0]


def _known_results(folder: Path, wanted: dict[str, Any]) -> Record | None:
    """`metrics.json` of a folder, if it was made with these settings; read on rank 0."""
    if not distributed.is_main():
        return None
    try:
        made_with, found = (
            json.loads((folder / name).read_text(encoding="utf-8"))
            for name in (SETTING_FILE, "metrics.json")
        )
    except (OSError, ValueError):
        return None
    return found if made_with == json.loads(json.dumps(wanted)) else None


@dataclass(frozen=True)
class Shown:
    """A result that is plotted.

    Attributes:
        name: `fid` or `is`.
        key: what `metrics.json` calls it.
        title: what people call it, with the number of images.
    """

    name: str
    key: str
    title: str


def shown_results(evaluation: Evaluation) -> list[Shown]:
    """The distance and the score, as far as they are computed; the first one decides.

    Raises:
        UserError: neither is.
    """
    scoring = evaluation.scoring
    if scoring is None:
        raise UserError("--feature_extractor: found none, expected one that scores")
    titles = Scores(scoring.extractor.kind, evaluation.num_images, {})
    found = [
        Shown(name, scoring.extractor.kind.names[name].key + end, titles.title(name))
        for name, end in (("fid", ""), ("is", "_mean"))
        if name in scoring.metrics
    ]
    if not found:
        raise UserError(f"--metrics: found {','.join(scoring.metrics)}, expected fid or is in it")
    return found


def best_of(records: Sequence[Record], shown: Sequence[Shown]) -> Record:
    """The record with the lowest distance; without a reference, with the highest score."""
    best = min if shown[0].name == "fid" else max
    return best(records, key=lambda record: record[shown[0].key])


def plot(records: Sequence[Record], shown: Sequence[Shown], path: Path) -> None:
    """Distance and score against guidance, one line per temperature, as PNG."""
    from matplotlib.figure import Figure  # slow to import

    figure = Figure(figsize=(4.5 * len(shown), 3.6), layout="constrained")
    for axes, result in zip(figure.subplots(1, len(shown), squeeze=False)[0], shown, strict=True):
        for temperature in sorted({record["temperature"] for record in records}):
            line = [record for record in records if record["temperature"] == temperature]
            cfgs, values = ([record[key] for record in line] for key in ("cfg", result.key))
            axes.plot(cfgs, values, marker="o", label=f"temperature {temperature:g}")
        better = "lower" if result.name == "fid" else "higher"
        axes.set(xlabel="cfg", ylabel=result.title, title=f"{better} is better")
        axes.legend()
    with replacing(path) as temporary, temporary.open("wb") as file:
        figure.savefig(file, format="png", dpi=120)


def report(args: argparse.Namespace, records: Sequence[Record], shown: Sequence[Shown]) -> str:
    """The table, the best setting and the line that evaluates it in full."""
    titles = {"cfg": "cfg", "temperature": "temperature"} | {one.key: one.title for one in shown}
    columns = {key: (title, ".4g", 1) for key, title in titles.items()}
    best = best_of(records, shown)
    return (
        f"{benchmark.markdown_table(columns, records)}"
        f"best: cfg {best['cfg']:g}, temperature {best['temperature']:g} "
        f"({', '.join(best['scores'])})\n{launch_line(args, best)}\n"
    )


def launch_line(args: argparse.Namespace, best: Record) -> str:
    """The command that evaluates the best setting with the published number of images, or fewer."""
    folder = str(Path(args.output_dir) / "best")
    count = args.num_images
    if PUBLISHED_SAMPLES % args.class_num == 0:
        count = PUBLISHED_SAMPLES
        if args.lpd_order_file:  # which serves as many images as it holds orders
            count = min(count, len(read_orders(args.lpd_order_file)))
            count -= count % args.class_num
    chosen = {"cfg": best["cfg"], "temperature": best["temperature"], "num_images": count}
    chosen |= {"output_dir": folder, "log_dir": folder}
    flags = flags_of(
        build_main_parser(), argparse.Namespace(**{**vars(pinned_flags(args)), **chosen}), False
    )
    words = [word for flag in flags for word in flag]
    return shlex.join([*launcher(), "main_lpd.py", *words])


if __name__ == "__main__":
    run(main)

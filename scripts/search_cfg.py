"""Evaluate a checkpoint at several guidance strengths (and temperatures), and say which is best.

torchrun --nproc_per_node 8 scripts/search_cfg.py --cfgs 3 4 5 6 --num_images 5000 \
    --model lpd_l --pretrained_ckpt lpd_l_256 --vqgan_path llamagen --generation_steps 20 \
    --order lpd --bf16 --fid_stats fid_stats/adm_in256_stats.npz --output_dir output/search

All flags of `main_lpd.py --evaluate` hold. Run again, it goes on: settings with results are kept.
"""

import argparse
import json
import logging
import shlex
import shutil
import sys
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from dataclasses import replace
from itertools import chain, product
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import engine_lpd
import main_lpd
from evaluation.evaluation import Evaluation, build_evaluation
from evaluation.metrics import PUBLISHED_SAMPLES, Scores
from evaluation.samples import sample_settings
from hub.published import pinned_flags, resolve_flags
from models.sampling import warn_of_guidance
from orders.order_file import read_orders
from performance.timing import markdown_table
from training.flags import build_parser as build_main_parser
from training.scalars import ScalarLog
from util import distributed
from util.cli import Parser, number
from util.errors import UserError, require_writable_folder, run
from util.files import read_json, replacing, write_json
from util.folder_lock import folder_lock
from util.run_record import flags_of, launcher, record_run

logger = logging.getLogger("lpd")

Record = dict[str, Any]  # what `metrics.json` of a setting holds
SETTING_FILE = "setting.json"  # beside it: what decided these results


def build_parser() -> Parser:
    """The flags of an evaluation, and what is searched."""
    parser = build_main_parser()
    parser.description = "Evaluate at several guidance strengths and say which is best."
    group = parser.add_argument_group("search")
    numbers = {"type": number(), "nargs": "+"}
    group.add_argument("--cfgs", **numbers, required=True, help="guidance strengths to try")
    group.add_argument("--temperatures", **numbers, help="by default --temperature alone")
    group.add_argument("--keep_images", action="store_true", help="of settings with results, too")
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """Evaluate each setting, write the results, print the best."""
    parser = build_parser()
    args = parser.parse_args(argv)
    launch = distributed.read_launch(args)
    device = distributed.resolve_device(args, launch)
    resolve_flags(args)
    args.evaluate = True
    grid, tokenizer, fingerprint, _ = main_lpd.load_tokens(args)
    model, weights = main_lpd.build_model(args, grid, fingerprint)
    model.to(device)
    evaluation = build_evaluation(args, model, tokenizer, device)
    if not evaluation.sampling.guided and set(args.cfgs) != {1.0}:  # not said of --cfg before
        warn_of_guidance(model.label_drop_prob, "--cfgs: found guidance")
    shown = shown_results(evaluation)
    folder = require_writable_folder(args.output_dir, "--output_dir")
    points = product(sorted({*(args.temperatures or [args.temperature])}), sorted({*args.cfgs}))
    with ExitStack() as at_exit:
        at_exit.enter_context(distributed.start(launch, device))
        engine_lpd.on_main(lambda: at_exit.enter_context(folder_lock(folder, "search")))
        engine_lpd.on_main(lambda: record_run(parser, pinned_flags(args), folder))
        evaluation = evaluation.with_reference()
        settings = sample_settings(args, evaluation, model, fingerprint)
        settings |= {**evaluation.scoring.about(), "scoring": evaluation.scoring.digest()}

        def evaluate(point: dict[str, float]) -> Record:
            """Return the results of one setting: new ones, or those that an earlier run left."""
            place = folder / "_".join(f"{key}{value:g}" for key, value in point.items())
            known = known_results(place, settings | point)
            logger.info("%s%s", place.name, ": results are there already" if known else "")
            if known:
                return known
            # New scores must not stand beside the settings of old ones, wherever this is stopped.
            engine_lpd.on_main(lambda: (place / SETTING_FILE).unlink(missing_ok=True))
            flags = argparse.Namespace(**{**vars(args), **point, "output_dir": str(place)})
            one = replace(evaluation, sampling=replace(evaluation.sampling, **point))
            trained = model, weights, one, fingerprint, ScalarLog(None)
            engine_lpd.evaluate_checkpoint(flags, *trained)
            engine_lpd.on_main(lambda: write_json(settings | point, place / SETTING_FILE))
            if not args.keep_images:
                engine_lpd.on_main(lambda: shutil.rmtree(place / "images"))
            return known_results(place, settings | point)

        records: list[Record] = []
        for temperature, cfg in points:
            records.append(evaluate({"cfg": cfg, "temperature": temperature}))
            engine_lpd.on_main(lambda: keep(folder, records, shown))
        if distributed.is_main():
            sys.stdout.write(report(args, records, shown))


def shown_results(evaluation: Evaluation) -> dict[str, str]:
    """Title distance and score, if computed, by key in `metrics.json`; the first decides."""
    scoring = evaluation.scoring
    if scoring is None:
        raise UserError("--feature_extractor: found none, expected one that scores")
    titles, names = Scores(scoring.extractor.kind, evaluation.num_images, {}), scoring.metrics
    ends = {name: end for name, end in (("fid", ""), ("is", "_mean")) if name in names}
    if not ends:
        raise UserError(f"--metrics: found {','.join(names)}, expected fid or is in it")
    return {titles.kind.names[name].key + end: titles.title(name) for name, end in ends.items()}


def known_results(folder: Path, wanted: Record) -> Record | None:
    """Read `metrics.json` of a folder if it was made with these settings; rank 0 does for all."""
    record = None
    if distributed.is_main():
        with suppress(OSError, ValueError):
            if read_json(folder / SETTING_FILE) == json.loads(json.dumps(wanted)):
                record = read_json(folder / "metrics.json")
    return distributed.gather(record)[0]


def keep(folder: Path, records: Sequence[Record], shown: dict[str, str]) -> None:
    """Write the results so far, and the plot: a line for each temperature, against guidance."""
    from matplotlib.figure import Figure  # slow to import

    write_json({"settings": records}, folder / "search.json")
    figure = Figure(figsize=(4.5 * len(shown), 3.6), layout="constrained")
    panels = figure.subplots(1, len(shown), squeeze=False)[0]
    for axes, (key, title) in zip(panels, shown.items(), strict=True):
        for temperature in sorted({record["temperature"] for record in records}):
            line = [record for record in records if record["temperature"] == temperature]
            cfgs, values = ([record[name] for record in line] for name in ("cfg", key))
            axes.plot(cfgs, values, marker="o", label=f"temperature {temperature:g}")
        better = "higher" if key.endswith("_mean") else "lower"
        axes.set(xlabel="cfg", ylabel=title, title=f"{better} is better")
        axes.legend()
    with replacing(folder / "search.png") as temporary:
        figure.savefig(temporary, format="png", dpi=120)


def report(args: argparse.Namespace, records: Sequence[Record], shown: dict[str, str]) -> str:
    """Make the table, the best setting and the line that evaluates it in full."""
    titles = {"cfg": "cfg", "temperature": "temperature"} | shown
    table = markdown_table({key: (title, ".4g", 1) for key, title in titles.items()}, records)
    decisive = next(iter(shown))
    # Without a reference there is no distance: the mean score decides, and more of it is better.
    best = (max if decisive.endswith("_mean") else min)(records, key=lambda one: one[decisive])
    point = {key: best[key] for key in ("cfg", "temperature")}
    count = args.num_images if PUBLISHED_SAMPLES % args.class_num else PUBLISHED_SAMPLES
    if args.lpd_order_file:  # which serves as many images as it holds orders
        most = min(count, len(read_orders(args.lpd_order_file)))
        count = most - most % args.class_num
    folders = dict.fromkeys(("output_dir", "log_dir"), str(Path(args.output_dir) / "best"))
    changes = {**point, "num_images": count, **folders}
    flags = argparse.Namespace(**{**vars(pinned_flags(args)), **changes})
    words = chain.from_iterable(flags_of(build_main_parser(), flags, defaults=False))
    return (
        f"{table}best: cfg {best['cfg']:g}, temperature {best['temperature']:g} "
        f"({', '.join(best['scores'])})\n{shlex.join([*launcher(), 'main_lpd.py', *words])}\n"
    )


if __name__ == "__main__":
    run(main)

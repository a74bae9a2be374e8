"""Every command's --help: flags in groups, each explained, defaults said."""

import argparse
import re
from collections.abc import Callable
from functools import partial

import pytest

import main_cache
from orders import run_lpd_order
from scripts import app, convert_cache, count_flops, edit, evaluate_orders, visualize
from tokenizers import train_vq
from training import flags


def visualize_command(name: str) -> argparse.ArgumentParser:
    (commands,) = visualize.build_parser()._subparsers._group_actions
    return commands.choices[name]


BUILDERS = {
    "main_lpd.py": flags.build_parser,
    "main_cache.py": main_cache.build_parser,
    "tokenizers/train_vq.py": train_vq.build_parser,
    "orders/run_lpd_order.py": run_lpd_order.build_parser,
    "scripts/app.py": app.build_parser,
    "scripts/convert_cache.py": convert_cache.build_parser,
    "scripts/count_flops.py": count_flops.build_parser,
    **{
        f"scripts/visualize.py {name}": partial(visualize_command, name)
        for name in ("order", "generation", "samples", "training")
    },
    "scripts/edit.py": edit.build_parser,
    "scripts/evaluate_orders.py": evaluate_orders.build_parser,
}
SHORT = {"scripts/convert_cache.py", "scripts/count_flops.py"}  # of few flags


@pytest.mark.parametrize("build", BUILDERS.values(), ids=BUILDERS)
def test_every_flag_is_explained_with_its_default(build: Callable) -> None:
    parser: argparse.ArgumentParser = build()
    text = " ".join(parser.format_help().split())
    for action in parser._actions:
        assert action.help, action.option_strings
        if isinstance(action.default, int | float) and not isinstance(action.default, bool):
            flag, default = action.option_strings[0], re.escape(str(action.default))
            assert re.search(rf"{flag} .*?\(default: {default}\)", text), flag


@pytest.mark.parametrize("name", BUILDERS.keys() - SHORT)
def test_flags_are_in_groups(name: str) -> None:
    parser: argparse.ArgumentParser = BUILDERS[name]()
    groups = {group.title for group in parser._action_groups[2:] if group._group_actions}
    assert {action.dest for action in parser._optionals._group_actions} <= {"help", "debug"}
    main = {"model", "training", "data", "evaluation", "sampling", "logging"}
    assert groups >= main if name == "main_lpd.py" else groups

"""Every command's --help: flags in groups, each explained, defaults said."""

import argparse
import re

import pytest

import main_cache
from orders import run_lpd_order
from scripts import app, convert_cache, count_flops, edit, evaluate_orders, visualize
from tokenizers import train_vq
from training import flags

MODULES = (main_cache, train_vq, run_lpd_order, app, edit, evaluate_orders)
SHORT = (convert_cache, count_flops)  # of few flags
PARSERS = {module.__name__: module.build_parser() for module in (flags, *MODULES, *SHORT)}
PARSERS |= visualize.build_parser()._subparsers._group_actions[0].choices


@pytest.mark.parametrize("parser", PARSERS.values(), ids=PARSERS)
def test_every_flag_is_explained_with_its_default(parser: argparse.ArgumentParser) -> None:
    text = " ".join(parser.format_help().split())
    for action in parser._actions:
        assert action.help, action.option_strings
        if isinstance(action.default, int | float) and not isinstance(action.default, bool):
            flag, default = action.option_strings[0], re.escape(str(action.default))
            assert re.search(rf"{flag} .*?\(default: {default}\)", text), flag


@pytest.mark.parametrize("name", sorted(PARSERS.keys() - {one.__name__ for one in SHORT}))
def test_flags_are_in_groups(name: str) -> None:
    parser = PARSERS[name]
    groups = {group.title for group in parser._action_groups[2:] if group._group_actions}
    assert {action.dest for action in parser._optionals._group_actions} <= {"help", "debug"}
    main = {"model", "training", "data", "evaluation", "sampling", "logging"}
    assert groups >= main if name == "training.flags" else groups

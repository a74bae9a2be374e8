import pytest

from util.cli import Parser, number, share, whole
from util.errors import UserError


def parser() -> Parser:
    parser = Parser()
    parser.add_argument("--count", type=whole(1), default=3)
    parser.add_argument("--rate", type=number(), default=0.5)
    parser.add_argument("--share", type=share())
    parser.add_argument("--kind", choices=["a", "b"])
    return parser


def test_values_in_range() -> None:
    args = parser().parse_args(["--count", "1", "--rate", "1e-4", "--share", "1"])
    assert (args.count, args.rate, args.share) == (1, 1e-4, 1.0)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--count", "0"], "--count: found '0', expected a whole number from 1 to 1000000000"),
        (["--count", "2.5"], "--count: found '2.5', expected a whole number from 1 to 1000000000"),
        (["--rate", "nan"], "--rate: found 'nan', expected a finite number of at least 0"),
        (["--rate", "inf"], "--rate: found 'inf'"),
        (["--share", "1.01"], "--share: found '1.01', expected a number from 0 to 1"),
        (["--kind", "c"], "--kind: invalid choice: 'c'"),
        (["--unknown"], "unrecognized arguments: --unknown"),
        (["--coun", "3"], "unrecognized arguments: --coun 3"),
        (["--count"], "--count: expected one argument"),
    ],
)
def test_complaints_are_one_user_error(flags: list[str], message: str) -> None:
    with pytest.raises(UserError) as caught:
        parser().parse_args(flags)
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)

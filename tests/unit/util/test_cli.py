import pytest

from util.cli import Parser, number, share, whole
from util.errors import UserError


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--count 2.5", "--count: found '2.5', expected a whole number from 1 to 1000000000"),
        ("--rate nan", "--rate: found 'nan', expected a finite number of at least 0"),
        ("--share 1.01", "--share: found '1.01', expected a number from 0 to 1"),
        ("--unknown", "unrecognized arguments: --unknown"),
        ("--coun 3", "unrecognized arguments: --coun 3"),
        ("--count", "--count: expected one argument"),
    ],
)
def test_values_in_range_and_complaints_of_one_line(flags: str, message: str) -> None:
    parser = Parser()
    parser.add_argument("--count", type=whole(1), default=3)
    parser.add_argument("--rate", type=number(), default=0.5)
    parser.add_argument("--share", type=share())
    args = parser.parse_args("--count 1 --rate 1e-4 --share 1".split())
    assert (args.count, args.rate, args.share) == (1, 1e-4, 1.0)
    with pytest.raises(UserError) as caught:
        parser.parse_args(flags.split())
    assert str(caught.value) == message

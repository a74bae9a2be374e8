"""A few handwritten digits, in the form of the demo's data."""

from pathlib import Path

from scripts import demo_digits


def few_digits(folder: Path, train: int, test: int) -> Path:
    """Write so many images of each digit to train/ and test/."""
    demo_digits.main(["prepare", "--output", str(folder)])
    for part, count in (("train", train), ("test", test)):
        for digit in (folder / part).iterdir():
            for path in sorted(digit.iterdir())[count:]:
                path.unlink()
    return folder

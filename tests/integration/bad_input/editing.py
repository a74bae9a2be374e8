"""Bad input of `scripts/edit.py`."""

from pathlib import Path

from PIL import Image

from tests.integration.bad_input import files
from tests.integration.bad_input.files import Spoil
from tests.integration.bad_input.table import Group, cases


def painting(
    name: str, size: tuple[int, int], white: tuple[int, int, int, int] | None = None
) -> Spoil:
    """Puts a black picture there, white in a box."""

    def spoil(folder: Path) -> None:
        picture = Image.new("L", size)
        if white is not None:
            picture.paste(255, white)
        picture.save(folder / name)

    return spoil


EDITING = Group(
    "Editing an image",
    "scripts/edit.py",
    "--pretrained_ckpt lpd.pth --vqgan_path vq.pt --image data/cat/1.png "
    "--mask data/cat/2.png --class 1 --cfg 2 --device cpu --output_dir out",
    cases(
        """
        no --image | no image
          the following arguments are required: --image
        --image no.png | no such file
          --image: no.png: cannot be decoded (No such file or directory), expected an image file
        --image text.png | no picture
          --image: text.png: cannot be decoded (damaged or not an image), expected an image file
        --image grid.png --output_dir . | an image that the edit would replace
          --output_dir: found grid.png (--image) there, expected another folder
        --mask white.png --steps 1 | a whole image in one step
          --steps: found 1 steps, expected 2 to 16 for 16 tokens
        --image long.png --mask long.png | one pixel wide and very long
          --image: found an image of 1 x 300000 pixels, expected a less elongated one
        --box 4 4 12 16 | a mask and a box
          --box: not allowed with argument --mask
        --mask mask.png | a mask of other proportions
          --mask: found a mask of 16 x 9 pixels for an image of 16 x 16, expected its size or
          proportions
        --image wide.png --mask wide.png, no --mask | white only where the crop cuts
          --mask: found nothing in the middle of the image, all that --fit crop leaves, expected
          something or --fit pad
        no --mask | nothing to make anew
          one of the arguments --mask --box --outpaint is required
        --box 4 4 17 16, no --mask | a box that leaves the image
          --box: found 4 4 17 16, expected x0 < x1 and y0 < y1 inside the image of 16 x 16 pixels
        --box 4 4 4 16, no --mask | an empty box
          --box: found 4 4 4 16, expected x0 < x1 and y0 < y1 inside the image of 16 x 16 pixels
        --outpaint left -4, no --mask | a negative number
          --outpaint: found 'left' '-4', expected left, right, top or bottom and a number of pixels
        --outpaint up 4, no --mask | no such side
          --outpaint: found 'up' '4', expected left, right, top or bottom and a number of pixels
        --outpaint left 17, no --mask | more than the image has
          --outpaint: found 17 pixels, expected 1 to 16, the image's longer side
        --outpaint left 16, no --mask | nothing of the image would be left
          --outpaint: found nothing left of the image, expected fewer pixels
        --class 3 | no such class
          --class: found '3', expected 0..2 or the name of one class
        no --class | guidance without a class
          --cfg: found 2 without --class, expected 1
        --vqgan_path other.pt | a tokenizer of another number of codes
          --vqgan_path: other.pt has 16 codes, expected the 32 of lpd.pth
        """,
        {
            "an image that the edit would replace": painting("grid.png", (16, 16)),
            "a whole image in one step": painting("white.png", (16, 16), (0, 0, 16, 16)),
            "no picture": files.writing("text.png", "no image"),
            "one pixel wide and very long": painting("long.png", (1, 300_000)),
            "a mask of other proportions": painting("mask.png", (16, 9)),
            "white only where the crop cuts": painting("wide.png", (64, 16), (0, 0, 9, 16)),
            "a tokenizer of another number of codes": files.other_codes,
        },
    ),
)

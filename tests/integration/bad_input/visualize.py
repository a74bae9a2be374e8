"""Bad input of `scripts/visualize.py`."""

from pathlib import Path

from tests.integration.bad_input import files
from tests.integration.bad_input.table import Group, cases
from training.scalars import ScalarLog

SCRIPT = "scripts/visualize.py"
SAMPLING = (
    "--pretrained_ckpt lpd.pth --vqgan_path vq.pt --generation_steps 5 --classes 0 2 --device cpu"
)


def tokenizer_run(folder: Path) -> None:
    """Scalars, but not of `main_lpd.py`."""
    log = ScalarLog(folder / "run")
    log.add(0, {"psnr": 20.0})
    log.close()


ORDERS = Group(
    "Drawing orders",
    SCRIPT,
    "order --img_size 16 --vqgan_stride 4 --generation_steps 5 --num_orders 9 --output_dir new",
    cases(
        """
        --output_dir '' | a folder without a name
          --output_dir: not given, expected a folder that can be written to
        --img_size 15 | not a multiple of the stride
          --img_size, --vqgan_stride: image size 15 is not a multiple of the tokenizer's stride 4
        --orders spiral | no such order
          --orders: found 'spiral', expected random, raster, lpd, lpd:R, lpd:R:P or an order file
          (.json, .npy, or a published name)
        --lpd_order_file orders.npy | an order file for another grid
          --lpd_order_file: orders.npy: found orders of length 64, expected 16
        --lpd_order_file orders.json --image_id 9 | an image beyond the last order
          --lpd_order_file: orders.json holds 9 orders, expected one for each of 10 images
        --lpd_order_file orders.json --orders random | the file's orders are not among those shown
          --lpd_order_file: found no lpd in --orders, expected it there
        """,
        {
            "an order file for another grid": files.other_grid_orders,
            "an image beyond the last order": files.order_rows(9),
            "the file's orders are not among those shown": files.order_rows(9),
        },
    ),
)

GENERATIONS = Group(
    "Drawing generations",
    SCRIPT,
    f"generation {SAMPLING} --output new.gif",
    cases(
        """
        --output new.jpg | no such kind of picture
          --output: found 'new.jpg', expected a name ending in .gif or .png
        --output data.png | a folder
          --output: data.png is a folder, expected a file
        --classes 3 | no such class
          --classes: found '3', expected 0..2 or the name of one class
        --class_names digits | names of another number of classes
          --class_names: digits names 10 classes, expected the 3 of the model
        --class_names names.json | no list of names
          --class_names: names.json: found 3 in the place of a name, expected text
        --num_images 3 | not the same number of each class
          --num_images: found 3, expected a multiple of the 2 classes (--classes)
        """,
        {
            "a folder": lambda folder: (folder / "data.png").mkdir(),
            "no list of names": files.writing("names.json", '["cat", 3]'),
        },
    ),
)

SAMPLES = Group(
    "Drawing samples",
    SCRIPT,
    f"samples {SAMPLING} --output new.png",
    cases(
        """
        --output new.gif | samples do not move
          --output: found 'new.gif', expected a name ending in .png
        """,
    ),
)

RUNS = Group(
    "Drawing a training run",
    SCRIPT,
    "training --log_dir run --output new.png",
    cases(
        """
        --log_dir no | no such folder
          --log_dir: no is not a folder, expected that of a training run
        --log_dir empty | nothing was logged there
          --log_dir: empty: found no such files, expected TensorBoard files of a training run
        --log_dir run | another run than one of `main_lpd.py`
          --log_dir: found psnr, expected train/loss and train/lr of a training run
        """,
        {
            "another run than one of `main_lpd.py`": tokenizer_run,
        },
    ),
)

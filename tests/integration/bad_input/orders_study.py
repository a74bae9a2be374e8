"""Bad input of `scripts/evaluate_orders.py`, and of models trained blind."""

from __future__ import annotations

from tests.integration.bad_input import files
from tests.integration.bad_input.evaluation import MODEL, OUTPUT
from tests.integration.bad_input.table import Case, Group

STUDY = Group(
    "Studying orders",
    "scripts/evaluate_orders.py",
    "--pretrained_ckpt lpd.pth --cached_path cache --steps 5 --device cpu --output new.json",
    (
        Case(
            "",
            "no checkpoint",
            "the following arguments are required: --pretrained_ckpt",
            without="--pretrained_ckpt",
        ),
        Case(
            "--pretrained_ckpt no.pth",
            "no such file",
            "--pretrained_ckpt: no.pth does not exist, expected a checkpoint written by torch.save",
        ),
        Case(
            "--pretrained_ckpt lpd32.pth",
            "a model of another grid",
            "--pretrained_ckpt: lpd32.pth: weight pos_embed has shape (1, 65, 192), expected "
            "(1, 17, 192)",
        ),
        Case(
            "--cached_path no",
            "no such folder",
            "--cached_path: no does not exist, expected the folder of a token cache",
        ),
        Case(
            "--orders spiral",
            "no such order",
            "--orders: found 'spiral', expected random, raster, lpd, lpd:R, lpd:R:P or an order "
            "file (.json, .npy, or a published name)",
        ),
        Case(
            "--output nll.png --plot nll.png",
            "one file for both",
            "--plot: found nll.png, as --output, expected another file",
        ),
        Case(
            "--orders lpd:near",
            "no threshold",
            "--orders: found 'lpd:near', expected lpd:R or lpd:R:P with finite numbers of at "
            "least 0",
        ),
        Case(
            "--orders no.json",
            "no such order file",
            "--orders: no.json: No such file or directory",
        ),
        Case(
            "--orders few.json",
            "fewer orders than images",
            "--orders: few.json holds 1 orders, expected one for each of 48 images",
            files.writing("few.json", str([list(range(16))])),
        ),
        Case(
            "--steps 17",
            "more steps than tokens",
            "--steps: found 17 steps, expected 2 to 16 for 16 tokens",
        ),
        Case(
            "--group_sizes '[1, 2]'",
            "they do not sum to the number of tokens",
            "--group_sizes: found 2 group sizes that sum to 3, expected a sum of 16",
        ),
        Case(
            "--num_images 49",
            "more than there are",
            "--num_images: found 49, expected 2 to the 48 of cache",
        ),
        Case(
            "--search --num_images 3",
            "no two halves",
            "--search: found 3 images, expected at least 4: two halves",
        ),
        Case(
            "--search",
            "no number of steps",
            "--search: found no --steps, expected --steps",
            without="--steps",
        ),
        Case(
            "--search --group_sizes '[16]'",
            "sizes that are not searched for",
            "--search: found --group_sizes, expected --steps",
        ),
        Case(
            "--search --plot new.png",
            "a plot of a search",
            "--search: found --plot, expected none: there is nothing to plot",
        ),
        Case(
            "--search --orders lpd",
            "orders that would be ignored",
            "--search: found --orders, expected none: it makes its own",
        ),
        Case(
            "--repulsions 1 2",
            "thresholds of a search, and none",
            "--repulsions: found without --search, expected both or neither",
        ),
        Case(
            "--proximities 0",
            "the same",
            "--proximities: found without --search, expected both or neither",
        ),
        Case(
            "--shapes 2",
            "the same",
            "--shapes: found without --search, expected both or neither",
        ),
        Case(
            "--search --shapes round",
            "no such shape",
            "--shapes: found shape 'round', expected rule or a positive number",
        ),
        Case(
            "--output data",
            "a folder",
            "--output: data is a folder, expected a file",
        ),
        Case(
            "--plot file/new.png",
            "a folder below a file",
            "--plot: file: File exists, expected a folder that can be written to",
        ),
    ),
)

BLIND = Group(
    "Models whose queries do not see one another",
    "main_lpd.py",
    f"--evaluate {MODEL} --pretrained_ckpt lpd.pth --group_sizes '[1, 3, 12]' --num_images 9 "
    f"--feature_extractor none {OUTPUT}",
    (
        Case(
            "--blind_queries",
            "the checkpoint was trained seeing",
            "--pretrained_ckpt: lpd.pth: was trained without --blind_queries, expected one with "
            "--blind_queries",
        ),
    ),
)

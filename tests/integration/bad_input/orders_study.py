"""Bad input of `scripts/evaluate_orders.py`, and of models trained blind."""

from __future__ import annotations

from tests.integration.bad_input import files
from tests.integration.bad_input.evaluation import MODEL, OUTPUT
from tests.integration.bad_input.table import Group, cases

STUDY = Group(
    "Studying orders",
    "scripts/evaluate_orders.py",
    "--pretrained_ckpt lpd.pth --cached_path cache --steps 5 --device cpu --output new.json",
    cases(
        """
        no --pretrained_ckpt | no checkpoint
          the following arguments are required: --pretrained_ckpt
        --pretrained_ckpt no.pth | no such file
          --pretrained_ckpt: no.pth does not exist, expected a checkpoint written by torch.save
        --pretrained_ckpt lpd32.pth | a model of another grid
          --pretrained_ckpt: lpd32.pth: weight pos_embed has shape (1, 65, 192), expected (1, 17,
          192)
        --cached_path no | no such folder
          --cached_path: no does not exist, expected the folder of a token cache
        --orders spiral | no such order
          --orders: found 'spiral', expected random, raster, lpd, lpd:R, lpd:R:P or an order file
          (.json, .npy, or a published name)
        --output nll.png --plot nll.png | one file for both
          --plot: found nll.png, as --output, expected another file
        --orders lpd:near | no threshold
          --orders: found 'lpd:near', expected lpd:R or lpd:R:P with finite numbers of at least 0
        --orders no.json | no such order file
          --orders: no.json: No such file or directory
        --orders few.json | fewer orders than images
          --orders: few.json holds 1 orders, expected one for each of 48 images
        --steps 17 | more steps than tokens
          --steps: found 17 steps, expected 2 to 16 for 16 tokens
        --group_sizes '[1, 2]' | they do not sum to the number of tokens
          --group_sizes: found 2 group sizes that sum to 3, expected a sum of 16
        --num_images 49 | more than there are
          --num_images: found 49, expected 2 to the 48 of cache
        --search --num_images 3 | no two halves
          --num_images: found 3, expected 4 to the 48 of cache
        --search, no --steps | no number of steps
          --search: found no --steps, expected --steps
        --search --plot new.png | what it would ignore: also --orders, --group_sizes
          --plot: found with --search, expected one or neither
        --shapes 2 | what only a search takes: also --repulsions, --proximities
          --shapes: found without --search, expected both or neither
        --search --shapes round | no such shape
          --steps, --shapes: found shape 'round', expected rule or a positive number
        --output data | a folder
          --output: data is a folder, expected a file
        --plot file/new.png | a folder below a file
          --plot: file: File exists, expected a folder that can be written to
        """,
        {"fewer orders than images": files.writing("few.json", str([list(range(16))]))},
    ),
)

BLIND = Group(
    "Models whose queries do not see one another",
    "main_lpd.py",
    f"--evaluate {MODEL} --pretrained_ckpt lpd.pth --group_sizes '[1, 3, 12]' --num_images 9 "
    f"--feature_extractor none {OUTPUT}",
    cases(
        """
        --blind_queries | the checkpoint was trained seeing
          --pretrained_ckpt: lpd.pth: was trained without --blind_queries, expected one with
          --blind_queries
        """
    ),
)

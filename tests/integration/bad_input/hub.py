"""Bad input of the commands that know published names; the tests run them with HF_HUB_OFFLINE=1."""

from __future__ import annotations

from tests.integration.bad_input import files
from tests.integration.bad_input.table import Case, Group

EVALUATING = Group(
    "Published names, without a network (HF_HUB_OFFLINE=1)",
    "main_lpd.py",
    "--evaluate --model lpd_tiny --img_size 16 --class_num 3 --vqgan_path vq.pt "
    "--pretrained_ckpt lpd.pth --generation_steps 5 --num_images 9 --feature_extractor none "
    "--device cpu --output_dir out --log_dir out",
    (
        Case(
            "--pretrained_ckpt lpd_l_256",
            "weights that are not in the cache",
            "--pretrained_ckpt: lpd_l_256: mit-han-lab/lpd_l_256 at main is not in the cache ..., "
            "expected it there because downloads are off (HF_HUB_OFFLINE): python "
            "util/download.py fetches it where there is a network",
        ),
        Case(
            "--vqgan_path llamagen@v2",
            "a revision of the tokenizer that is not in the cache",
            "--vqgan_path: llamagen@v2: FoundationVision/LlamaGen at v2 is not in the cache ..., "
            "expected it there because downloads are off (HF_HUB_OFFLINE): python "
            "util/download.py fetches it where there is a network",
        ),
        Case(
            "--order lpd --lpd_order_file lpd_l_256",
            "weights in the place of orders",
            "--lpd_order_file: found lpd_l_256, published weights, expected a file or "
            "res256_steps20_repulsion2, res256_steps20_repulsion3, res256_steps32_repulsion2, "
            "res512_steps48_repulsion4",
        ),
        Case(
            "--pretrained_ckpt lpd_l_256@",
            "no revision after the @",
            "--pretrained_ckpt: found 'lpd_l_256@', expected lpd_l_256@REVISION or lpd_l_256",
        ),
        Case(
            "--pretrained_ckpt lpd_l_256@../main",
            "a revision that is no name",
            "--pretrained_ckpt: lpd_l_256@../main: found revision '../main', expected a branch, a "
            "tag or a commit",
        ),
    ),
)

DOWNLOADING = Group(
    "Fetching what is published",
    "util/download.py",
    "",
    (
        Case(
            "",
            "nothing to fetch",
            "NAME: found nothing to do, expected names, --all or --list",
        ),
        Case(
            "--all llamagen",
            "a name besides all",
            "NAME: found more than one of them, expected names, --all or --list",
        ),
        Case(
            "llamagen lpd_m_256",
            "no such name",
            "NAME: found 'lpd_m_256', expected one of lpd_l_256, lpd_xl_256, lpd_xxl_256, "
            "lpd_l_512, lpd_xl_512, llamagen, res256_steps20_repulsion2, "
            "res256_steps20_repulsion3, res256_steps32_repulsion2, res512_steps48_repulsion4",
        ),
        Case(
            "llamagen",
            "not in the cache and HF_HUB_OFFLINE=1",
            "NAME: llamagen: FoundationVision/LlamaGen at main is not in the cache ..., expected "
            "it there because downloads are off (HF_HUB_OFFLINE): python util/download.py fetches "
            "it where there is a network",
        ),
    ),
)

CONVERTING = Group(
    "Converting checkpoints",
    "scripts/convert_checkpoint.py",
    "lpd.pth",
    (
        Case(
            "--results no.json",
            "no such file",
            "--results: no.json does not exist, expected a JSON of names and values",
        ),
        Case(
            "--results lpd.pth",
            "no JSON",
            "--results: lpd.pth is no readable JSON (...)",
        ),
        Case("again", "three names", "unrecognized arguments: new"),
        Case(
            "no.pth",
            "no such file",
            "IN: no.pth does not exist, expected a checkpoint written by torch.save",
            without="lpd.pth",
        ),
        Case(
            "data",
            "a folder, which becomes a file",
            "OUT: found new, expected a .pth, as IN is a folder",
            without="lpd.pth",
        ),
        Case(
            "digits.pth",
            "no weights of this project",
            "IN: digits.pth holds other weights, expected those of LPD or of its tokenizer",
            without="lpd.pth",
        ),
        Case(
            "cut.pth",
            "a file cut short",
            "IN: cut.pth is not a readable checkpoint (damaged, or holding more than tensors and "
            "plain values), expected a dictionary written by torch.save",
            files.cutting("lpd.pth", "cut.pth"),
            without="lpd.pth",
        ),
        Case(
            "",
            "OUT is there already",
            "OUT: new is there already, expected a new one",
            files.writing("new", "mine"),
        ),
    ),
    "new",
)

"""Bad input of the commands that know published names; the tests run them with HF_HUB_OFFLINE=1."""

from tests.integration.bad_input import files
from tests.integration.bad_input.evaluation import MODEL, OUTPUT
from tests.integration.bad_input.table import Group, cases

EVALUATING = Group(
    "Published names, without a network (HF_HUB_OFFLINE=1)",
    "main_lpd.py",
    f"--evaluate {MODEL} --pretrained_ckpt lpd.pth --generation_steps 5 --num_images 9 "
    f"--feature_extractor none {OUTPUT}",
    cases(
        """
        --pretrained_ckpt lpd_l_256 | weights that are not in the cache
          --pretrained_ckpt: lpd_l_256: mit-han-lab/lpd_l_256 at main is not in the cache ...,
          expected it there because downloads are off (HF_HUB_OFFLINE): python util/download.py
          fetches it where there is a network
        --vqgan_path llamagen@v2 | a revision of the tokenizer that is not in the cache
          --vqgan_path: llamagen@v2: FoundationVision/LlamaGen at v2 is not in the cache ...,
          expected it there because downloads are off (HF_HUB_OFFLINE): python util/download.py
          fetches it where there is a network
        --order lpd --lpd_order_file lpd_l_256 | weights in the place of orders
          --lpd_order_file: found lpd_l_256, published weights, expected a file or
          res256_steps20_repulsion2, res256_steps20_repulsion3, res256_steps32_repulsion2,
          res512_steps48_repulsion4
        --pretrained_ckpt lpd_l_256@ | no revision after the @
          --pretrained_ckpt: lpd_l_256@: found revision '', expected a branch, a tag or a commit
        --pretrained_ckpt lpd_l_256@../main | a revision that is no name
          --pretrained_ckpt: lpd_l_256@../main: found revision '../main', expected a branch, a tag
          or a commit
        """
    ),
)

DOWNLOADING = Group(
    "Fetching what is published",
    "util/download.py",
    "",
    cases(
        """
        | nothing to fetch
          NAME: found nothing to do, expected names, --all or --list
        --all llamagen | a name besides all
          NAME: found more than one of them, expected names, --all or --list
        llamagen lpd_m_256 | no such name
          NAME: found 'lpd_m_256', expected one of lpd_l_256, lpd_xl_256, lpd_xxl_256, lpd_l_512,
          lpd_xl_512, llamagen, res256_steps20_repulsion2, res256_steps20_repulsion3,
          res256_steps32_repulsion2, res512_steps48_repulsion4
        llamagen | not in the cache and HF_HUB_OFFLINE=1
          NAME: llamagen: FoundationVision/LlamaGen at main is not in the cache ..., expected it
          there because downloads are off (HF_HUB_OFFLINE): python util/download.py fetches it where
          there is a network
        """
    ),
)

CONVERTING = Group(
    "Converting checkpoints",
    "scripts/convert_checkpoint.py",
    "lpd.pth",
    cases(
        """
        --results no.json | no such file
          --results: no.json does not exist, expected a JSON of names and values
        --results lpd.pth | no JSON
          --results: lpd.pth is no readable JSON (...)
        again | three names
          unrecognized arguments: new
        no.pth, no lpd.pth | no such file
          IN: no.pth does not exist, expected a checkpoint written by torch.save
        data, no lpd.pth | a folder, which becomes a file
          OUT: found new, expected a .pth, as IN is a folder
        digits.pth, no lpd.pth | no weights of this project
          IN: digits.pth holds other weights, expected those of LPD or of its tokenizer
        cut.pth, no lpd.pth | a file cut short
          IN: cut.pth is not a readable checkpoint (damaged, or holding more than tensors and plain
          values), expected a dictionary written by torch.save
        | OUT is there already
          OUT: new is there already, expected a new one
        """,
        {
            "a file cut short": files.cutting("lpd.pth", "cut.pth"),
            "OUT is there already": files.writing("new", "mine"),
        },
    ),
    "new",
)

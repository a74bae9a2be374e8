"""Bad input of `scripts/app.py`."""

from tests.integration.bad_input.table import Group, cases

PAGE_TO_PLAY_WITH = Group(
    "The page to play with",
    "scripts/app.py",
    "--pretrained_ckpt lpd.pth --vqgan_path vq.pt --device cpu --port 0",
    cases(
        """
        no --pretrained_ckpt | no weights, and no demo here
          --pretrained_ckpt: not given, and output/demo/checkpoint-last.pth does not exist, expected
          weights, or those that bash scripts/demo.sh trains in some minutes
        --pretrained_ckpt llamagen | the name of a tokenizer
          --pretrained_ckpt: found llamagen, published tokenizer, expected a file or lpd_l_256,
          lpd_xl_256, lpd_xxl_256, lpd_l_512, lpd_xl_512
        --class_names digits | names of other classes
          --class_names: digits names 10 classes, expected the 3 of the model
        --device cuda | no GPU
          --device: found 'cuda' but no usable GPU, expected --device cpu here
        --port 65536 | no such port
          --port: found '65536', expected a whole number from 0 to 65535
        --host no.such.machine.invalid | no such machine
          --host, --port: found no.such.machine.invalid:0: ..., expected an address of this machine
          and a free port
        --host 192.0.2.1 | an address that is not this machine's
          --host, --port: found 192.0.2.1:0: Cannot assign requested address..., expected an address
          of this machine and a free port
        """,
    ),
)

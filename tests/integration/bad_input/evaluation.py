"""Bad input of `main_lpd.py --evaluate`."""

from pathlib import Path

from tests.fuzzing import claiming, npy
from tests.integration.bad_input import files
from tests.integration.bad_input.table import Group, cases

MODEL = "--model lpd_tiny --img_size 16 --class_num 3 --vqgan_path vq.pt --device cpu"
OUTPUT = "--output_dir out --log_dir out"


def cut_weights(folder: Path) -> None:
    files.cutting("lpd.pth", "cut.pth")(folder)
    files.cutting("vq.pt", "cut.pt")(folder)


EVALUATION = Group(
    "Evaluation",
    "main_lpd.py",
    f"--evaluate {MODEL} --pretrained_ckpt lpd.pth --group_sizes '[1, 3, 12]' --num_images 9 "
    f"--feature_extractor none {OUTPUT}",
    cases(
        """
        | a folder that another evaluation writes to
          --output_dir: out is in use by another run (process ... on ..., since ...), expected a
          folder for each
        --pretrained_ckpt no.pth | no such file
          --pretrained_ckpt: no.pth does not exist, expected a checkpoint written by torch.save
        --pretrained_ckpt data | a folder of something else
          --pretrained_ckpt: data: found cat, dog, expected config.json and model.safetensors, or
          one .pth
        --pretrained_ckpt cut.pth | a file cut short
          --pretrained_ckpt: cut.pth is not a readable checkpoint (damaged, or holding more than
          tensors and plain values), expected a dictionary written by torch.save
        --pretrained_ckpt flipped.pth | one bit is another
          --pretrained_ckpt: flipped.pth is not a readable checkpoint (damaged, or holding more than
          tensors and plain values), expected a dictionary written by torch.save
        --pretrained_ckpt evil.pth | a pickle that runs code (which it does not)
          --pretrained_ckpt: evil.pth is not a readable checkpoint (damaged, or holding more than
          tensors and plain values), expected a dictionary written by torch.save
        --pretrained_ckpt list.pth | something else
          --pretrained_ckpt: list.pth holds a list, expected a dictionary
        --pretrained_ckpt bare.pth | no weights in it
          --pretrained_ckpt: bare.pth: holds no 'model' entry, expected the weights there
        --pretrained_ckpt nan.pth | weights that are not finite
          --pretrained_ckpt: nan.pth: weight mask_token holds NaN or infinity, expected finite
          numbers
        --pretrained_ckpt other.pth | of another tokenizer
          --pretrained_ckpt: other.pth: was trained on tokens of tokenizer 0123456789ab, expected
          this run's ... (--vqgan_path)
        --model lpd_l | a checkpoint of another size
          --pretrained_ckpt: lpd.pth: weight fake_latent has shape (1, 192), expected (1, 1024) (and
          297 more differences)
        --img_size 32 | a checkpoint of another grid
          --pretrained_ckpt: lpd.pth: weight pos_embed has shape (1, 17, 192), expected (1, 65, 192)
        no --pretrained_ckpt | nothing to evaluate
          --evaluate: no weights, expected --pretrained_ckpt or --resume
        --resume empty, no --pretrained_ckpt | no checkpoint in the folder
          --resume: empty/checkpoint-last.pth does not exist, expected a checkpoint written by
          torch.save
        --vqgan_path no.pt | no such file
          --vqgan_path: no.pt does not exist, expected a checkpoint written by torch.save
        --vqgan_path cut.pt | a file cut short
          --vqgan_path: cut.pt is not a readable checkpoint (damaged, or holding more than tensors
          and plain values), expected a dictionary written by torch.save
        --vqgan_path lpd.pth | not a tokenizer
          --vqgan_path: lpd.pth: weight encoder.conv_in.weight is missing, expected shape (128, 3,
          3, 3) (and 425 more differences)
        --vqgan_stride 16 | another tokenizer's stride
          --vqgan_stride: found 16, expected 4 as in the tokenizer's files
        --vqgan_vocab_size 16384 | another tokenizer's vocabulary
          --vqgan_path: vq.pt has 32 codes, expected 16384 (--vqgan_vocab_size)
        --img_size 18 | no multiple of the stride
          --img_size: image size 18 is not a multiple of the tokenizer's stride 4
        --img_size large | no number
          --img_size: found 'large', expected a whole number from 1 to 16384
        --group_sizes '[1, 2, 3]' | they do not sum to the number of tokens
          --group_sizes: found 3 group sizes that sum to 6, expected a sum of 16
        --group_sizes '[0, 16]' | an empty group
          --group_sizes: group 0: found size 0, expected at least 1
        --group_sizes '[1] * 10**12' | no list of group sizes
          --group_sizes: found '[1] * 10**12', expected group sizes such as '[1] * 256', '[1]*4 +
          [2]*126' or '[1, 3]'
        --group_sizes '[1] * 100000000' | far too many groups
          --group_sizes: found 100000000 groups, expected at most 65536
        --group_sizes "__import__('os').mknod('canary')" | code (which is not run)
          --group_sizes: found "__import__('os').mknod('canary')", expected group sizes such as '[1]
          * 256', '[1]*4 + [2]*126' or '[1, 3]'
        --generation_steps 1 | one step for many tokens
          --generation_steps: found 1 steps, expected 2 to 16 for 16 tokens
        --order raster | no such order
          --order: invalid choice: 'raster' (choose from ...)
        --cfg nan | not finite
          --cfg: found 'nan', expected a finite number of at least 0
        --temperature -1 | negative
          --temperature: found '-1', expected a finite number of at least 0
        --top_p 1.5 | no probability
          --top_p: found '1.5', expected a number from 0 to 1
        --top_k -1 | negative
          --top_k: found '-1', expected a whole number from 0 to 1000000000
        --num_images 10 | not the same number of each class
          --num_images: found 10, expected a multiple of the 3 classes (--class_num)
        --eval_bsz 0 | no images at a time
          --eval_bsz: found '0', expected a whole number from 1 to 1000000000
        --seed today | no number
          --seed: found 'today', expected a whole number of at most 63 bits
        --model lpd_s | no such model
          --model: invalid choice: 'lpd_s' (choose from ...)
        --cgf 4.8 | no such flag
          unrecognized arguments: --cgf 4.8
        --cfg | a flag without its value
          --cfg: expected one argument
        --feature_extractor clip | no such network
          --feature_extractor: found 'clip', expected inception, digits or none
        --feature_extractor digits | its weights are not given
          --feature_extractor_weights: not given, expected the file of the trained digits classifier
          (--feature_extractor digits)
        --device tpu | no such device
          --device: found 'tpu', expected cpu or cuda
        --device cuda | no GPU here
          --device: found 'cuda' but no usable GPU, expected --device cpu here
        --world_size 8 | not started by torchrun
          --world_size: found 8 but no RANK and WORLD_SIZE, expected a start by torchrun
        --output_dir file/out | a folder below a file
          --output_dir: file/out: Not a directory, expected a folder that can be written to
        --log_dir file | a file
          --log_dir: file: File exists, expected a folder that can be written to
        """,
        {
            "a folder that another evaluation writes to": files.in_use("out", "evaluation"),
            "a file cut short": cut_weights,
            "one bit is another": files.flipping("lpd.pth", "flipped.pth"),
            "a pickle that runs code (which it does not)": files.malicious_checkpoint,
            "something else": files.saving("list.pth", [1]),
            "no weights in it": files.saving("bare.pth", {"optimizer": {}}),
            "weights that are not finite": files.nan_weights,
            "of another tokenizer": files.other_tokens,
        },
    ),
)

ORDER_FILES = Group(
    "Order files",
    "main_lpd.py",
    f"{EVALUATION.flags} --order lpd",
    cases(
        r"""
        --lpd_order_file orders.json | no such file
          --lpd_order_file: orders.json: No such file or directory
        --lpd_order_file orders.txt | another ending
          --lpd_order_file: found 'orders.txt', expected a name ending in .json or .npy
        --lpd_order_file orders.json | fewer orders than images
          --lpd_order_file: orders.json holds 8 orders, expected at least 9 (--num_images)
        --lpd_order_file orders.json | a position twice
          --lpd_order_file: orders.json: row 4: found position 7 repeated, expected every position
          once
        --lpd_order_file orders.json | orders of different lengths
          --lpd_order_file: orders.json: row 4: found length 15, expected 16
        --lpd_order_file orders.npy | of another grid
          --lpd_order_file: orders.npy: found orders of length 64, expected 16
        --lpd_order_file orders.json | a file cut short
          --lpd_order_file: orders.json: damaged JSON in the row at character 1: ...
        --lpd_order_file orders.json | not JSON
          --lpd_order_file: orders.json: found b'\x93' at byte 0, expected a JSON list of lists of
          whole numbers
        --lpd_order_file orders.npy | a pipe
          --lpd_order_file: orders.npy: is a pipe, a folder or a device, expected a file
        --lpd_order_file orders.npy | a damaged header
          --lpd_order_file: orders.npy: has no readable .npy header, expected one as NumPy writes it
        --lpd_order_file orders.npy | a header that claims a trillion orders
          --lpd_order_file: orders.npy: is damaged: 192 bytes, expected 16000000000128
        --lpd_order_file orders.npy | fractions
          --lpd_order_file: orders.npy: found an array of shape (1, 16) and type float32, expected
          rows of whole numbers
        --lpd_order_file orders.json --order random | an order file that is not used
          --lpd_order_file: found orders.json with --order random, expected --order lpd
        """,
        {
            "another ending": files.writing("orders.txt", "[[0]]"),
            "fewer orders than images": files.order_rows(8),
            "a position twice": files.order_rows(9, files.repeat_a_position),
            "orders of different lengths": files.order_rows(9, files.shorten_a_row),
            "of another grid": files.other_grid_orders,
            "a file cut short": files.writing("orders.json", "[[0, 1"),
            "not JSON": files.writing("orders.json", b"\x93NUMPY"),
            "a pipe": files.piping("orders.npy"),
            "a damaged header": files.writing(
                "orders.npy", npy("{'descr': ('|u1', 'shape': (9, 16)}")
            ),
            "a header that claims a trillion orders": files.writing(
                "orders.npy", claiming("|u1", "(1000000000000, 16)")
            ),
            "fractions": files.writing("orders.npy", claiming("<f4", "(1, 16)")),
            "an order file that is not used": files.order_rows(9),
        },
    ),
)

STATISTICS = Group(
    "Reference statistics and feature extractors",
    "main_lpd.py",
    f"{EVALUATION.flags} --img_size 32 --pretrained_ckpt lpd32.pth --group_sizes '[1, 63]' "
    "--feature_extractor digits --feature_extractor_weights digits.pth",
    cases(
        """
        --fid_stats no.npz | no such file
          --fid_stats: no.npz does not exist, expected an .npz with mu and sigma or a folder of
          images
        --fid_stats empty | a folder without images
          --fid_stats: empty holds 0 images (png,jpg,jpeg), expected at least 2
        --fid_stats stats.npz | no archive
          --fid_stats: stats.npz cannot be read (damaged, or no .npz archive), expected an .npz with
          mu (64,) and sigma (64, 64)
        --fid_stats stats.npz | no sigma
          --fid_stats: stats.npz holds no sigma, expected an .npz with mu (64,) and sigma (64, 64)
        --fid_stats stats.npz | of another network
          --fid_stats: stats.npz: mu is float64 of shape (2048,), expected an .npz with mu (64,) and
          sigma (64, 64)
        --fid_stats stats.npz | numbers that are not finite
          --fid_stats: stats.npz: mu holds NaN or infinity, expected an .npz with mu (64,) and sigma
          (64, 64)
        --fid_stats stats.npz | Python objects instead of numbers (they are not unpickled)
          --fid_stats: stats.npz cannot be read (Object arrays are not read, expected plain
          numbers), expected an .npz with mu (64,) and sigma (64, 64)
        --fid_stats stats.npz | 200 KB that unpack to 200 MB
          --fid_stats: stats.npz cannot be read (mu.npy unpacks to more than 134217728 bytes),
          expected an .npz with mu (64,) and sigma (64, 64)
        --feature_extractor_weights no.pth | no such file
          --feature_extractor_weights: no.pth does not exist, expected a checkpoint written by
          torch.save
        --feature_extractor_weights lpd.pth | another network's weights
          --feature_extractor_weights: lpd.pth does not hold the weights of lpd-digits: Error(s) in
          loading state_dict for DigitsClassifier: ...
        --img_size 16 --pretrained_ckpt lpd.pth --group_sizes '[16]' | images of another size
          --feature_extractor: digits takes images of 32 pixels, found --img_size 16, expected 32
        """,
        {
            "no archive": files.writing("stats.npz", "mu"),
            "no sigma": files.statistics([0.0] * 64),
            "of another network": files.statistics([0.0] * 2048, [0.0]),
            "numbers that are not finite": files.statistics([float("nan")] * 64, [[0.0] * 64] * 64),
            "Python objects instead of numbers (they are not unpickled)": files.statistics(
                [files.Canary()] * 64, [[0.0] * 64] * 64
            ),
            "200 KB that unpack to 200 MB": files.packing(
                "stats.npz", "mu", "sigma", length=200 * 2**20
            ),
        },
    ),
)

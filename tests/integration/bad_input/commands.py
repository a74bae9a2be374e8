"""Bad input of all commands but `main_lpd.py`."""

from __future__ import annotations

from tests.integration.bad_input import files
from tests.integration.bad_input.table import Group, cases

CACHING = Group(
    "Making a token cache",
    "main_cache.py",
    "--data_path data --cached_path new --vqgan_path vq.pt --img_size 16 --device cpu "
    "--num_workers 0",
    cases(
        """
        no --cached_path | nowhere to write to
          --cached_path: not given, expected the folder to write the cache to
        --cached_path cache | a finished cache
          --cached_path: cache already holds a finished token cache, expected a new folder
        --cached_path data | a folder of other files
          --cached_path: data holds cat, expected a new or empty folder
        --cached_path new | an unfinished cache of other settings
          --cached_path: new: holds an unfinished cache with image_size 32, found 16: expected the
          same flags and images, or another folder
        --vqgan_path no.pt | no such file
          --vqgan_path: no.pt does not exist, expected a checkpoint written by torch.save
        --img_size 18 | no multiple of the stride
          --img_size: image size 18 is not a multiple of the tokenizer's stride 4
        --data_path no | no such folder
          --data_path: no does not exist, expected a folder of class folders
        --data_path empty | a folder without classes
          --data_path: empty holds no class folders, expected <class>/<images>
        --data_path data | a class without images
          --data_path: class folder data/eel holds no images, expected at least one (.bmp, .gif,
          .jpeg, .jpg, .pgm, .png, .ppm, .tif, .tiff, .webp)
        --data_path data | an image that cannot be decoded
          data/dog/1.png: cannot be decoded (damaged or not an image), expected an image file
        --data_path data | a pipe in place of an image
          data/dog/1.png: cannot be decoded (is a pipe, a folder or a device, expected a file),
          expected an image file
        --data_path data.tar | a compressed tar
          --data_path: data.tar is not a folder, so expected an uncompressed tar of one: it cannot
          be read (...)
        --data_path data.tar | a tar cut short
          --data_path: data.tar is not a folder, so expected an uncompressed tar of one: it cannot
          be read (...)
        --data_path data.tar | links instead of files
          --data_path: data.tar is not a folder, so expected an uncompressed tar of one: cat/1.png
          is a link or a special file, expected plain ones
        --data_path lpd.pth | no tar
          --data_path: lpd.pth is not a folder, so expected an uncompressed tar of one: it cannot
          be read (...)
        --tf32 --bf16 | two precisions
          --bf16: not allowed with argument --tf32
        --batch_size 0 | no images at a time
          --batch_size: found '0', expected a whole number from 1 to 1000000000
        """,
        {
            "an unfinished cache of other settings": files.unfinished_cache,
            "a class without images": files.empty_class,
            "an image that cannot be decoded": files.corrupt_image,
            "a pipe in place of an image": files.piping("data/dog/1.png"),
            "a compressed tar": files.tarring("w:gz"),
            "a tar cut short": files.cut_tar,
            "links instead of files": files.links_tar,
        },
    ),
)

CONVERTING = Group(
    "Converting published token files",
    "scripts/convert_cache.py",
    "--published_path published --cached_path new --vqgan_path vq.pt --num_workers 1",
    cases(
        """
        no --published_path | nothing to convert
          --published_path: found nothing, expected the folder of a token cache
        --published_path no | no such folder
          --published_path: no does not exist, expected the folder of a token cache
        --published_path cache | a token cache of this project
          --published_path: cache is a token cache already, expected a folder of <class>/<image
          name>.npz
        --published_path data | a folder of images
          --published_path: class folder data/cat holds no token files, expected at least one (.npz)
        no --cached_path | nowhere to write to
          --cached_path: not given, expected the folder to write the cache to
        --vqgan_path no.pt | no such file
          --vqgan_path: no.pt does not exist, expected a checkpoint written by torch.save
        --cached_path data | a folder of other files
          --cached_path: data holds cat, expected a new or empty folder
        --published_path published | an image of another grid
          --published_path: published/dog/1.npz holds 64 indices from 0 to 0, expected 16 in [0, 32)
        --published_path published | an index beyond the vocabulary
          --published_path: published/dog/1.npz holds 16 indices from 32 to 32, expected 16 in [0,
          32)
        --published_path published | fractions
          --published_path: published/dog/1.npz cannot be read (indices holds 16 x float64),
          expected an .npz with integer arrays 'indices' and 'indices_flip'
        --published_path published | Python objects instead of numbers (they are not unpickled)
          --published_path: published/dog/1.npz cannot be read (Object arrays are not read, expected
          plain numbers), expected an .npz with integer arrays 'indices' and 'indices_flip'
        --published_path published | a file cut short
          --published_path: published/cat/1.npz cannot be read (damaged, or no .npz archive),
          expected an .npz with integer arrays 'indices' and 'indices_flip'
        --published_path published | 200 KB that unpack to 200 MB
          --published_path: published/dog/1.npz cannot be read (indices.npy unpacks to more than
          134217728 bytes), expected an .npz with integer arrays 'indices' and 'indices_flip'
        """,
        {
            "an image of another grid": files.publishing([0] * 64),
            "an index beyond the vocabulary": files.publishing([32] * 16),
            "fractions": files.publishing([0.5] * 16),
            "Python objects instead of numbers (they are not unpickled)": files.publishing(
                [files.Canary()] * 16
            ),
            "a file cut short": files.cutting("published/cat/1.npz"),
            "200 KB that unpack to 200 MB": files.packing(
                "published/dog/1.npz", "indices", "indices_flip", length=200 * 2**20
            ),
        },
    ),
)

MAKING_ORDERS = Group(
    "Making order files",
    "orders/run_lpd_order.py",
    "--img_size 64 --generation_steps 5 --num_runs 4 --output_file new.npy",
    cases(
        """
        no --generation_steps | no number of steps
          --generation_steps, --group_sizes: found neither, expected one of them
        --generation_steps 17 | more steps than tokens
          --generation_steps: found 17 steps, expected 2 to 16 for 16 tokens
        --group_sizes '[1, 2]', no --generation_steps | they do not sum to the number of tokens
          --group_sizes: found 2 group sizes that sum to 3, expected a sum of 16
        --img_size 60 | no multiple of the stride
          --img_size, --vqgan_stride: image size 60 is not a multiple of the tokenizer's stride 16
        --img_size 16384 --vqgan_stride 1 | a grid too large
          --img_size, --vqgan_stride: found 16384 tokens a side, expected at most 2048
        no --output_file | nowhere to write to
          --output_file: not given, expected a .json or .npy file
        --output_file new.txt | another ending
          --output_file: found 'new.txt', expected a name ending in .json or .npy
        --output_file file/new.npy | a folder below a file
          --output_file: file: File exists, expected a folder that can be written to
        --num_runs 0 | no orders
          --num_runs: found '0', expected a whole number from 1 to 1000000000
        --repulsion_threshold -1 | negative
          --repulsion_threshold: found '-1', expected a finite number of at least 0
        """
    ),
)

TOKENIZER = Group(
    "Training a tokenizer",
    "tokenizers/train_vq.py",
    "--data_path data --img_size 16 --ch 32 --ch_mult 1 1 --codebook_size 16 --num_workers 0 "
    "--epochs 1 --device cpu --output_dir out",
    cases(
        """
        | a folder with another tokenizer
          --output_dir: out holds vq.pt, expected another folder, or --overwrite (caches made with
          it will be refused)
        no --data_path | no images
          the following arguments are required: --data_path
        --data_path no | no such folder
          --data_path: no does not exist, expected a folder of class folders
        --data_path data | a class without images
          --data_path: class folder data/eel holds no images, expected at least one (.bmp, .gif,
          .jpeg, .jpg, .pgm, .png, .ppm, .tif, .tiff, .webp)
        --data_path data | an image that cannot be decoded
          --data_path: data/dog/1.png: cannot be decoded (damaged or not an image), expected an
          image file
        --ch 33 | a width that the normalisation cannot divide
          --codebook_size, --codebook_embed_dim, --ch, --ch_mult, ...: found ch 33, expected a
          multiple of 32
        --img_size 15 | no multiple of the stride
          --img_size: found 15, expected a multiple of the stride 2 that --ch_mult makes
        --codebook_size 0 | no codes
          --codebook_size: found '0', expected a whole number from 1 to 1000000000
        --lr inf | not finite
          --lr: found 'inf', expected a finite number of at least 0
        --output_dir file | a file
          --output_dir: file: File exists, expected a folder that can be written to
        """,
        {
            "a folder with another tokenizer": files.writing("out/vq.pt", ""),
            "a class without images": files.empty_class,
            "an image that cannot be decoded": files.corrupt_image,
        },
    ),
)

SLURM = Group(
    "Jobs on a Slurm cluster",
    "scripts/cli/run.py",
    "-J demo",
    cases(
        """
        no -J | a job without a name
          the following arguments are required: -J/--job-name
        -J a/b | a name that is no file name
          -J/--job-name: found 'a/b', expected letters, digits and .+:=@_-
        no COMMAND | nothing to run
          COMMAND: not given, expected what to run, for example: bash my_script.sh
        -N 0 | no nodes
          -N/--nodes: found '0', expected a whole number from 1 to 1000000000
        -t tomorrow | no time limit
          -t/--time: found 'tomorrow', expected minutes, H:M:S or D-H:M:S
        --slurm-args='--qos="long' | an open quote
          --slurm-args: found '--qos="long': No closing quotation
        --pty --batch | a terminal in a queued job
          --pty: found --batch too, expected one of the two
        --max-retry -1 | negative
          --max-retry: found '-1', expected a whole number from 0 to 1000000000
        """
    ),
    "bash train.sh",
)

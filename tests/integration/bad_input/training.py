"""Bad input of `main_lpd.py` where it trains."""

import numpy as np

from tests.fuzzing import claiming
from tests.integration.bad_input import files
from tests.integration.bad_input.evaluation import MODEL, OUTPUT
from tests.integration.bad_input.table import Group, cases

TRAINING = Group(
    "Training",
    "main_lpd.py",
    f"{MODEL} --use_cached --cached_path cache --group_sizes_list auto --batch_size 16 {OUTPUT}",
    cases(
        """
        no --cached_path | training on no cache
          --cached_path: not given, expected a token cache with --use_cached
        --cached_path no | no such folder
          --cached_path: no does not exist, expected the folder of a token cache
        --vqgan_path other.pt | a cache of another tokenizer
          --cached_path: cache was made by the tokenizer ..., expected ... (--vqgan_path)
        --img_size 32 | a cache of another image size
          --cached_path: cache was made for TokenGrid(image_size=16, stride=4, vocab_size=32),
          expected TokenGrid(image_size=32, stride=4, vocab_size=32)
        --class_num 2 | a cache of more classes
          --cached_path: cache has 3 classes, expected at most 2 (--class_num)
        --batch_size 64 | a batch larger than the data
          --batch_size: found 64 on 1 processes, expected at most 48: the data holds 48 images
        --batch_size 16 --accum_iter 4 | steps larger than the data
          --batch_size times --accum_iter: found 64 on 1 processes, expected at most 48: the data
          holds 48 images
        --group_sizes_list no.json | no such file
          --group_sizes_list: no.json: No such file or directory
        --group_sizes_list sizes.json | of another grid
          --group_sizes_list: sizes.json: list 1: found 2 group sizes that sum to 64, expected a sum
          of 16
        --group_sizes_list sizes.json | one list, not a list of lists
          --group_sizes_list: sizes.json: found something else, expected a JSON list of lists of
          group sizes
        --group_sizes_list sizes.json | fractions
          --group_sizes_list: sizes.json: list 0: group 1: found 15.0, expected a whole number
        --group_sizes_list sizes.json | a file cut short
          --group_sizes_list: sizes.json: damaged JSON at character 11: ...
        --group_sizes_list sizes.json | a pipe
          --group_sizes_list: sizes.json: is a pipe, a folder or a device, expected a file
        --lr_schedule linear | no such schedule
          --lr_schedule: invalid choice: 'linear' (choose from ...)
        --flip_prob 2 | no probability
          --flip_prob: found '2', expected a number from 0 to 1
        --fsdp | weights spread over one process
          --fsdp: found one process, expected training alone, on several processes
        | a folder with the checkpoints of another run
          --output_dir: out holds checkpoint-25.pth, expected --resume out to go on from it, another
          folder, or --overwrite
        --overwrite --resume out | to go on and to begin anew
          --overwrite: found with --resume, expected training from the start
        --resume out | a folder that has lost what a run goes on from
          --output_dir: out holds checkpoint-25.pth and no checkpoint-last.pth, expected a copy of
          one under that name to go on from, or another folder
        | a folder that another run trains in
          --output_dir: out is in use by another run (process ... on ..., since ...), expected a
          folder for each
        --resume no | no such folder
          --resume: no is not a folder, expected the one that holds checkpoint-last.pth
        --resume empty | a damaged checkpoint, and none before it
          --resume: empty/checkpoint-last.pth is not a readable checkpoint (damaged, or holding more
          than tensors and plain values), expected a dictionary written by torch.save
        --resume empty | a run of another model
          --resume: empty/checkpoint-last.pth: weight fake_latent has shape (1, 8), expected (1,
          192) (and 81 more differences)
        --data_path data, no --use_cached | a class without images
          --data_path: class folder data/eel holds no images, expected at least one (.bmp, .gif,
          .jpeg, .jpg, .pgm, .png, .ppm, .tif, .tiff, .webp)
        """,
        {
            "a cache of another tokenizer": files.other_tokenizer,
            "of another grid": files.writing("sizes.json", "[[1, 15], [1, 63]]"),
            "one list, not a list of lists": files.writing("sizes.json", "[1, 15]"),
            "fractions": files.writing("sizes.json", "[[1, 15.0]]"),
            "a file cut short": files.writing("sizes.json", "[[1, 15], ["),
            "a pipe": files.piping("sizes.json"),
            "a folder with the checkpoints of another run": files.writing(
                "out/checkpoint-25.pth", ""
            ),
            "a folder that has lost what a run goes on from": files.writing(
                "out/checkpoint-25.pth", ""
            ),
            "a folder that another run trains in": files.in_use("out", "training"),
            "a damaged checkpoint, and none before it": files.writing(
                "empty/checkpoint-last.pth", b"PK\x03\x04"
            ),
            "a run of another model": files.resumable,
            "a class without images": files.empty_class,
        },
    ),
)

TOKEN_CACHE = Group(
    "Token caches",
    "main_lpd.py",
    TRAINING.flags,
    cases(
        """
        --cached_path cache | an index cut short
          --cached_path: cache/index.json: damaged JSON at character ...
        --cached_path cache | a pipe in place of the index
          --cached_path: cache/index.json: is a pipe, a folder or a device, expected a file
        --cached_path published | a pipe in place of tokens
          --cached_path: published/cat/1.npz cannot be read (is a pipe, a folder or a device,
          expected a file), expected an .npz with integer arrays 'indices' and 'indices_flip'
        --cached_path cache | another program's index
          --cached_path: cache/index.json: is not the index of a token cache
        --cached_path cache | an index of another version
          --cached_path: cache/index.json: has version 1, expected 2
        --cached_path cache | an index without classes
          --cached_path: cache/index.json: is damaged: no usable entry 'classes'
        --cached_path cache | an index of more images
          --cached_path: cache/cache-labels.npy: holds int32 (48,), expected int32 (1000000000000,)
        --cached_path cache | no index: another run has not finished
          --cached_path: cache holds tokens but no index.json, expected a finished token cache
        --cached_path cache | no tokens
          --cached_path: cache/cache-tokens.npy: is missing, expected uint16 (48, 2, 16)
        --cached_path cache | tokens cut short
          --cached_path: cache/cache-tokens.npy: is damaged: 1600 bytes, expected 3200
        --cached_path cache | tokens of another type
          --cached_path: cache/cache-tokens.npy: holds float32 (48, 2, 16), expected uint16 (48, 2,
          16)
        --cached_path cache | a header that claims a trillion images
          --cached_path: cache/cache-tokens.npy: is damaged: 192 bytes, expected 64000000000128
        --cached_path cache | labels beyond the classes
          --cached_path: cache/cache-labels.npy is damaged: labels from 3 to 3, expected [0, 3)
        """,
        {
            "an index cut short": files.cutting("cache/index.json"),
            "a pipe in place of the index": files.piping("cache/index.json"),
            "a pipe in place of tokens": files.piping("published/cat/1.npz"),
            "another program's index": files.writing("cache/index.json", "{}"),
            "an index of another version": files.editing_index(version=1),
            "an index without classes": files.editing_index(classes=None),
            "an index of more images": files.editing_index(num_images=10**12),
            "no index: another run has not finished": files.removing("cache/index.json"),
            "no tokens": files.removing("cache/cache-tokens.npy"),
            "tokens cut short": files.cutting("cache/cache-tokens.npy"),
            "tokens of another type": files.array(
                "cache/cache-tokens.npy", np.zeros((48, 2, 16), dtype=np.float32)
            ),
            "a header that claims a trillion images": files.writing(
                "cache/cache-tokens.npy", claiming("<u2", "(1000000000000, 2, 16)")
            ),
            "labels beyond the classes": files.array(
                "cache/cache-labels.npy", np.full(48, 3, dtype=np.int32)
            ),
        },
    ),
)

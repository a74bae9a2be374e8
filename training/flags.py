"""The flags of `main_lpd.py`: published names and defaults, in groups."""

from __future__ import annotations

import argparse

from models.decoding import SAMPLERS
from models.lpd import MODELS
from models.sampling import CFG_SCHEDULES
from orders.sources import SAMPLING_ORDERS, TRAINING_ORDERS
from training.recipe import LR_SCHEDULES
from util.cli import Parser, add_flags, number, share, whole
from util.distributed import add_distributed_flags


def build_parser() -> Parser:
    """All flags of training and evaluation."""
    parser = Parser(description="Train an LPD model, or evaluate one with --evaluate.")
    _add_model_flags(parser)
    _add_training_flags(parser)
    _add_data_flags(parser)
    _add_evaluation_flags(parser)
    add_sampling_flags(parser)
    _add_logging_flags(parser)
    add_distributed_flags(parser)
    return parser


def _add_model_flags(parser: Parser) -> None:
    group = parser.add_argument_group("model")
    group.add_argument("--model", default="lpd_l", choices=sorted(MODELS), help="network size")
    add_flags(group, "--img_size", "--vqgan_path")
    add_flags(
        group,
        "--vqgan_stride",
        help="pixels per token; by default the tokenizer's or the cache's, else 16",
    )
    add_flags(
        group,
        "--vqgan_vocab_size",
        help="number of codes; by default the tokenizer's or the cache's, else 16384",
    )
    group.add_argument(
        "--blind_queries",
        action="store_true",
        help="queries of a group do not see one another, in training and decoding: an ablation",
    )
    group.add_argument(
        "--pretrained_ckpt",
        help="checkpoint whose weights to start from, or the name of published ones: lpd_l_256 ... "
        "(python util/download.py --list)",
    )


def _add_training_flags(parser: Parser) -> None:
    group = parser.add_argument_group("training")
    group.add_argument(
        "--group_sizes_list",
        help="JSON list of group-size lists, one drawn per step, or 'auto' for the published "
        "training set of this grid; by default the one list of --group_sizes",
    )
    group.add_argument(
        "--train_order",
        default="random",
        choices=TRAINING_ORDERS,
        help="of the positions in training; raster is an ablation",
    )
    add_flags(group, "--epochs", default=450)
    add_flags(group, "--batch_size", help="images per process at a time")
    group.add_argument(
        "--accum_iter", type=whole(1), default=1, help="batches per process and optimiser step"
    )
    group.add_argument(
        "--compile",
        action=argparse.BooleanOptionalAction,
        help="compile the network, on a GPU with sparse masks; by default there",
    )
    group.add_argument(
        "--lr", type=number(), help="learning rate; by default blr * images per step / 256"
    )
    group.add_argument("--blr", type=number(), default=1e-4, help="learning rate per 256 images")
    group.add_argument("--min_lr", type=number(), default=1e-5, help="where the cosine ends")
    group.add_argument(
        "--lr_schedule", default="constant+cosine", choices=LR_SCHEDULES, help="after the warm-up"
    )
    group.add_argument("--warmup_epochs", type=whole(0), default=50, help="epochs from 0 to lr")
    group.add_argument(
        "--lr_decay_start_epoch",
        type=whole(0),
        default=400,
        help="epoch at which constant+cosine begins to fall",
    )
    add_flags(group, "--bf16")
    group.add_argument(
        "--weight_decay", type=number(), default=0.02, help="of matrices and embeddings"
    )
    group.add_argument("--grad_checkpointing", action="store_true", help="recompute blocks")
    group.add_argument("--grad_clip", type=number(), default=3.0, help="gradient norm; 0 for none")
    group.add_argument(
        "--attn_dropout",
        type=share(),
        default=0.0,
        help="of attention weights; the published models had none",
    )
    group.add_argument(
        "--proj_dropout", type=share(), default=0.1, help="of attention's and the MLP's outputs"
    )
    group.add_argument(
        "--label_drop_prob", type=share(), default=0.1, help="share of images without their class"
    )
    group.add_argument(
        "--fsdp",
        action="store_true",
        help="spread weights and optimiser over the processes, two or more; not with --online_eval",
    )
    add_flags(group, "--output_dir", help="checkpoints and results")
    group.add_argument(
        "--overwrite",
        action="store_true",
        help="train from the start, and delete the checkpoints that --output_dir holds",
    )
    group.add_argument("--resume", default="", help="folder of checkpoint-last.pth")
    group.add_argument("--save_last_freq", type=whole(1), default=5, help="epochs")
    group.add_argument("--save_intermediate_freq", type=whole(1), default=25, help="epochs")
    group.add_argument(
        "--save_steps", type=whole(0), default=0, help="steps between saves; 0 for none"
    )
    group.add_argument(
        "--save_minutes", type=number(), default=0.0, help="minutes between saves; 0 for none"
    )
    group.add_argument(
        "--resume_epoch", type=whole(0), default=0, help="first epoch of a fresh run"
    )
    add_flags(group, "--device")
    add_flags(group, "--seed", default=1)


def _add_data_flags(parser: Parser) -> None:
    group = parser.add_argument_group("data")
    add_flags(group, "--data_path")
    group.add_argument("--use_cached", action="store_true", help="train on cached tokens")
    add_flags(group, "--cached_path", help="token cache of main_cache.py")
    add_flags(group, "--class_num", "--flip_prob", "--num_workers", "--pin_mem", "--no_pin_mem")


def _add_evaluation_flags(parser: Parser) -> None:
    group = parser.add_argument_group("evaluation")
    group.add_argument("--evaluate", action="store_true", help="evaluate instead of training")
    group.add_argument("--online_eval", action="store_true", help="evaluate during training")
    group.add_argument("--eval_freq", type=whole(1), default=50, help="epochs")
    group.add_argument("--eval_bsz", type=whole(1), default=64, help="images per process and batch")
    group.add_argument(
        "--num_images", type=whole(1), default=50000, help="a multiple of the classes"
    )
    group.add_argument(
        "--images",
        help="score these samples, without a model: a folder, or an ADM-style archive (npz)",
    )
    group.add_argument("--save_npz", action="store_true", help="also write an ADM-style archive")
    group.add_argument(
        "--metrics",
        help="comma-separated: fid, sfid, is, kid, prc (precision and recall); by default fid,is",
    )
    group.add_argument(
        "--fid_stats",
        help="reference: npz of statistics (ADM's, or of scripts/compute_stats.py), sample archive "
        "(npz) or image folder; by default fid_stats/adm_in{img_size}_stats.npz where that exists",
    )
    add_flags(group, "--feature_extractor", "--feature_extractor_weights")


def add_sampling_flags(parser: Parser) -> None:
    """How samples are made: steps, orders, guidance and what is drawn from."""
    group = parser.add_argument_group("sampling")
    add_flags(group, "--generation_steps")
    group.add_argument("--group_sizes", default="[1] * 256", help="tokens per step, sum N")
    group.add_argument(
        "--order",
        default="random",
        choices=SAMPLING_ORDERS,
        help="of the positions; lpd is locality-aware",
    )
    group.add_argument(
        "--lpd_order_file",
        help="orders for --order lpd, a file or a published name; else made on the spot",
    )
    add_decoding_flags(group)


def add_decoding_flags(group: argparse._ArgumentGroup) -> None:
    """Orders made on the spot, guidance and what is drawn from, also of an edit."""
    add_flags(group, "--proximity_threshold", "--repulsion_threshold", "--cfg")
    group.add_argument(
        "--cfg_schedule",
        default="linear",
        choices=CFG_SCHEDULES,
        help="guidance over decoding: linear ramp or constant",
    )
    group.add_argument("--temperature", type=number(), default=1.0, help="logits are divided by it")
    group.add_argument("--top_k", type=whole(0), default=0, help="0 keeps all codes")
    group.add_argument("--top_p", type=share(), default=1.0, help="1 keeps all codes")
    group.add_argument(
        "--sampler", default="fast", choices=SAMPLERS, help="plain is the readable reference"
    )


def _add_logging_flags(parser: Parser) -> None:
    group = parser.add_argument_group("logging")
    group.add_argument("--log_dir", default="./output_dir", help="TensorBoard folder")
    group.add_argument("--log_every", type=whole(1), default=20, help="steps between log entries")
    group.add_argument("--use_wandb", action="store_true", help="mirror to Weights & Biases")
    group.add_argument("--wandb_project", help="project there")
    group.add_argument("--wandb_run_name", help="run name there")
    add_flags(group, "--debug")

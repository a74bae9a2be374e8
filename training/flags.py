"""The flags of `main_lpd.py`: published names and defaults, in groups."""

import argparse

from models.decoding import SAMPLERS
from models.lpd import MODELS
from models.sampling import CFG_SCHEDULES
from orders.sources import SAMPLING_ORDERS, TRAINING_ORDERS
from training.recipe import LR_SCHEDULES
from util.cli import Parser, add_flags, number, share, whole
from util.distributed import add_distributed_flags


def build_parser() -> Parser:
    """Declare all flags of training and evaluation."""
    parser = Parser(description="Train an LPD model, or evaluate one with --evaluate.")
    _add_model_flags(parser.add_argument_group("model"))
    _add_training_flags(parser.add_argument_group("training"))
    group = parser.add_argument_group("data")
    add_flags(group, "--data_path")
    group.add_argument("--use_cached", action="store_true", help="train on cached tokens")
    add_flags(group, "--cached_path", help="token cache of main_cache.py")
    add_flags(group, "--class_num", "--flip_prob", "--num_workers", "--pin_mem", "--no_pin_mem")
    _add_evaluation_flags(parser.add_argument_group("evaluation"))
    add_sampling_flags(parser)
    group = parser.add_argument_group("logging")
    group.add_argument("--log_dir", default="./output_dir", help="TensorBoard folder")
    group.add_argument("--log_every", type=whole(1), default=20, help="steps between log entries")
    group.add_argument("--use_wandb", action="store_true", help="mirror to Weights & Biases")
    group.add_argument("--wandb_project", help="project there")
    group.add_argument("--wandb_run_name", help="run name there")
    add_flags(group, "--debug")
    add_distributed_flags(parser)
    return parser


def _add_model_flags(group: argparse._ArgumentGroup) -> None:
    add, by_default = group.add_argument, "by default the tokenizer's or the cache's, else"
    add("--model", default="lpd_l", choices=sorted(MODELS), help="network size")
    add_flags(group, "--img_size", "--vqgan_path")
    add_flags(group, "--vqgan_stride", help=f"pixels per token; {by_default} 16")
    add_flags(group, "--vqgan_vocab_size", help=f"number of codes; {by_default} 16384")
    add("--blind_queries", action="store_true", help="ablation: of a group, none sees another")
    text = "checkpoint whose weights to start from, or the name of published ones: lpd_l_256 ... "
    add_flags(group, "--pretrained_ckpt", help=f"{text}(python util/download.py --list)")


def _add_training_flags(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    text = "JSON list of group-size lists, one drawn per step, or 'auto' for the published training"
    add(
        "--group_sizes_list",
        help=f"{text} set of this grid; by default the one list of --group_sizes",
    )
    add("--train_order", default="random", choices=TRAINING_ORDERS, help="raster is an ablation")
    add_flags(group, "--epochs", default=450)
    add_flags(group, "--batch_size", help="images per process at a time")
    add("--accum_iter", type=whole(1), default=1, help="batches per process and optimiser step")
    text = "compile the network, on a GPU with sparse masks; by default there"
    add("--compile", action=argparse.BooleanOptionalAction, help=text)
    add("--lr", type=number(), help="learning rate; by default blr * images per step / 256")
    add("--blr", type=number(), default=1e-4, help="learning rate per 256 images")
    add("--min_lr", type=number(), default=1e-5, help="where the cosine ends")
    add("--lr_schedule", default="constant+cosine", choices=LR_SCHEDULES, help="after warm-up")
    add("--warmup_epochs", type=whole(0), default=50, help="epochs from 0 to lr")
    add("--lr_decay_start_epoch", type=whole(0), default=400, help="where the cosine begins")
    add_flags(group, "--bf16")
    add("--weight_decay", type=number(), default=0.02, help="of matrices and embeddings")
    add("--grad_checkpointing", action="store_true", help="recompute blocks")
    add("--grad_clip", type=number(), default=3.0, help="gradient norm; 0 for none")
    add("--attn_dropout", type=share(), default=0.0, help="of attention weights; published: 0")
    add("--proj_dropout", type=share(), default=0.1, help="of attention's and MLP's outputs")
    add("--label_drop_prob", type=share(), default=0.1, help="share of images without a class")
    text = "spread weights and optimiser over the processes, two or more; not with --online_eval"
    add("--fsdp", action="store_true", help=text)
    add_flags(group, "--output_dir", help="checkpoints and results")
    add("--overwrite", action="store_true", help="train anew, deleting --output_dir's checkpoints")
    add("--resume", default="", help="folder of checkpoint-last.pth")
    add("--save_last_freq", type=whole(1), default=5, help="epochs")
    add("--save_intermediate_freq", type=whole(1), default=25, help="epochs")
    add("--save_steps", type=whole(0), default=0, help="steps between saves; 0 for none")
    add("--save_minutes", type=number(), default=0.0, help="minutes between saves; 0 for none")
    add("--resume_epoch", type=whole(0), default=0, help="first epoch of a fresh run")
    add_flags(group, "--device")
    add_flags(group, "--seed", default=1)


def _add_evaluation_flags(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    add("--evaluate", action="store_true", help="evaluate instead of training")
    add("--online_eval", action="store_true", help="evaluate during training")
    add("--eval_freq", type=whole(1), default=50, help="epochs")
    add("--eval_bsz", type=whole(1), default=64, help="images per process and batch")
    add("--num_images", type=whole(1), default=50000, help="a multiple of the classes")
    add("--images", help="score these, without a model: a folder, or an ADM-style archive (npz)")
    add("--save_npz", action="store_true", help="also write an ADM-style archive")
    text = "comma-separated: fid, sfid, is, kid, prc (precision and recall); by default fid,is"
    add("--metrics", help=text)
    text = "reference: npz of statistics (ADM's, or of scripts/compute_stats.py), sample archive "
    text += "(npz) or image folder; by default fid_stats/adm_in{img_size}_stats.npz where that "
    add("--fid_stats", help=f"{text}exists")
    add_flags(group, "--feature_extractor", "--feature_extractor_weights")


def add_sampling_flags(parser: Parser) -> None:
    """Declare how samples are made: steps, orders, guidance and what is drawn from."""
    group = parser.add_argument_group("sampling")
    add_flags(group, "--generation_steps")
    add_flags(group, "--group_sizes", default="[1] * 256", help="tokens per step, sum N")
    text = "of the positions; lpd is locality-aware"
    group.add_argument("--order", default="random", choices=SAMPLING_ORDERS, help=text)
    text = "orders for --order lpd, a file or a published name; else made on the spot"
    group.add_argument("--lpd_order_file", help=text)
    add_decoding_flags(group)


def add_decoding_flags(group: argparse._ArgumentGroup) -> None:
    """Declare orders made on the spot, guidance and what is drawn from, also of an edit."""
    add, text = group.add_argument, "guidance over decoding: linear ramp or constant"
    add_flags(group, "--proximity_threshold", "--repulsion_threshold", "--cfg")
    add("--cfg_schedule", default="linear", choices=CFG_SCHEDULES, help=text)
    add("--temperature", type=number(), default=1.0, help="logits are divided by it")
    add("--top_k", type=whole(0), default=0, help="0 keeps all codes")
    add("--top_p", type=share(), default=1.0, help="1 keeps all codes")
    add("--sampler", default="fast", choices=SAMPLERS, help="plain is the readable reference")

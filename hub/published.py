"""The published weights, tokenizer and orders, by name."""

import argparse
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from hub.download import DEFAULT_ACCESS, Access, commit_of, fetch
from util.errors import blame

logger = logging.getLogger("lpd")

WEIGHTS, TOKENIZER, ORDERS = "weights", "tokenizer", "orders"
# What may be given a published name in the place of a file.
FLAGS = {"pretrained_ckpt": WEIGHTS, "vqgan_path": TOKENIZER, "lpd_order_file": ORDERS}
# The form of the Hub.
SAFETENSORS, CONFIG = "model.safetensors", "config.json"


@dataclass(frozen=True)
class Published:
    """Something that the authors of LPD, or of its tokenizer, have published."""

    kind: str  # WEIGHTS, TOKENIZER or ORDERS
    repository: str  # on the Hub
    file: str  # what it is called there, as far as is known

    def choose(self, names: Sequence[str]) -> list[str]:
        """Find the file among those of the repository, or raise a `ValueError`."""
        files = [name for name in names if PurePosixPath(name).name == self.file]
        if not files and self.kind == WEIGHTS:  # alone in their repository: any name will do
            return choose_weights(names)
        if len(files) != 1:
            listed = ", ".join(names) or "no files"
            raise ValueError(f"{self.repository} holds {listed}, expected one {self.file}")
        return files


_WEIGHTS = ("lpd_l_256", "lpd_xl_256", "lpd_xxl_256", "lpd_l_512", "lpd_xl_512")
_ORDERS = ("res256_steps20_repulsion2", "res256_steps20_repulsion3", "res256_steps32_repulsion2")
_ORDERS += ("res512_steps48_repulsion4",)
PUBLISHED = {
    **{name: Published(WEIGHTS, f"mit-han-lab/{name}", f"{name}.pth") for name in _WEIGHTS},
    "llamagen": Published(TOKENIZER, "FoundationVision/LlamaGen", "vq_ds16_c2i.pt"),
    **{name: Published(ORDERS, "mit-han-lab/lpd_orders", f"{name}.json") for name in _ORDERS},
}


def published_names(kind: str | None = None) -> list[str]:
    """List all names, or those of one kind."""
    return [name for name, entry in PUBLISHED.items() if kind in (None, entry.kind)]


def parse(spec: str) -> tuple[Published, str]:
    """Split `NAME` or `NAME@REVISION` into what it names and the revision."""
    name, at, revision = spec.partition("@")
    if name not in PUBLISHED:
        raise ValueError(f"found {name!r}, expected one of {', '.join(PUBLISHED)}")
    return PUBLISHED[name], revision if at else "main"


def download(spec: str, access: Access = DEFAULT_ACCESS) -> Path:
    """Return the file of `NAME` or `NAME@REVISION`; raises as `hub.download.fetch`."""
    entry, revision = parse(spec)
    with blame(spec):
        path = fetch(entry.repository, entry.choose, revision, access)[-1]
    logger.info("%s: %s of %s, commit %s", spec, path.name, entry.repository, commit_of(path))
    return path


def choose_weights(names: Sequence[str]) -> list[str]:
    """Find the files of a folder or repository that hold one network's weights, those last."""
    if SAFETENSORS in names and CONFIG in names:
        return [CONFIG, SAFETENSORS]
    files = [name for name in names if name.endswith((".pth", ".pt"))]
    if len(files) != 1:
        listed = ", ".join([*names[:5], "..."][: len(names)]) or "no files"
        raise ValueError(f"found {listed}, expected {CONFIG} and {SAFETENSORS}, or one .pth")
    return files


def weights_in_folder(folder: Path) -> Path:
    """Find the file of weights in a folder; a `ValueError` if it does not hold one network's."""
    with blame(str(folder)):
        return folder / choose_weights(sorted(file.name for file in folder.iterdir()))[-1]


def resolve(value: str, kind: str) -> str:
    """Return the path that a flag for `kind` means: its value, or the file of a published name.

    A file of that name comes first, a folder of weights last; what is none of them is returned
    too, for whoever opens it to complain. A `ValueError` is about anything else.
    """
    path, entry = Path(value), PUBLISHED.get(value.partition("@")[0])
    if entry is None and kind != ORDERS and path.is_dir():
        return str(weights_in_folder(path))
    if entry is None or path.is_file():
        return value
    if entry.kind != kind:
        names = ", ".join(published_names(kind))
        raise ValueError(f"found {value}, published {entry.kind}, expected a file or {names}")
    return str(download(value))


def resolve_flags(args: argparse.Namespace) -> None:
    """Replace published names among a command's flags by the paths of their files."""
    for name, kind in FLAGS.items():
        if value := getattr(args, name, None):
            with blame(f"--{name}"):
                setattr(args, name, resolve(value, kind))


def pinned(path: str | Path) -> str:
    """Return `NAME@COMMIT`, the same anywhere, for a path that `resolve` made; else the path."""
    path, commit = Path(path), commit_of(path)
    for name, entry in PUBLISHED.items():
        ours = path.is_relative_to(DEFAULT_ACCESS.folder(entry.repository))
        if commit and ours and (entry.kind == WEIGHTS or path.name == entry.file):
            return f"{name}@{commit}"
    return str(path)


def pinned_flags(args: argparse.Namespace) -> argparse.Namespace:
    """Copy flags that `resolve_flags` has changed, with `pinned` names instead of paths."""
    names = {name: pinned(path) for name in FLAGS if (path := getattr(args, name, None))}
    return argparse.Namespace(**{**vars(args), **names})

"""Token caches: a data set as code indices, encoded once, read in whole batches."""

from __future__ import annotations

import logging
from pathlib import Path

from util.data.cache_readers import MappedCache, PublishedCache, TokenCache
from util.data.cache_writer import INDEX_FILE, holds_unfinished
from util.errors import UserError
from util.geometry import TokenGrid

logger = logging.getLogger(__name__)


def open_cache(path: str | Path, flag: str = "--cached_path") -> TokenCache:
    """Open a token cache, this project's or the published layout.

    File sizes and types are checked against the index, checksums are not (`TokenCache.verify`).

    Raises:
        UserError: no cache, another version, or a file of it is missing or damaged.
    """
    if not str(path):
        raise UserError(f"{flag}: found nothing, expected the folder of a token cache")
    path = Path(path)
    if not path.is_dir():
        found = "is not a folder" if path.exists() else "does not exist"
        raise UserError(f"{flag}: {path} {found}, expected the folder of a token cache")
    if (path / INDEX_FILE).exists():
        return MappedCache(path, flag)
    if holds_unfinished(path):
        raise UserError(
            f"{flag}: {path} holds tokens but no {INDEX_FILE}, expected a finished token cache"
        )
    return PublishedCache(path, flag)


def check_cache(
    cache: TokenCache,
    grid: TokenGrid,
    fingerprint: str | None,
    num_classes: int,
    flag: str = "--cached_path",
) -> None:
    """Refuse a cache that does not belong to this run, or is damaged: all of it is read once.

    A published cache records neither image size nor vocabulary: it is taken at its number of
    tokens, with a warning, and held to `grid.vocab_size` from then on.

    Args:
        cache: what `open_cache` returned.
        grid: image size, stride and vocabulary of the run.
        fingerprint: of the run's tokenizer; None does not compare it.
        num_classes: classes of the model.
        flag: the flag that named the cache, for messages.

    Raises:
        UserError: another number of tokens, image size, vocabulary or tokenizer, more classes, or
            other bytes than were written.
    """
    made = f"{flag}: {cache.path} was made"
    if cache.grid is None and cache.num_tokens != grid.num_tokens:
        raise UserError(
            f"{flag}: {cache.path} has {cache.num_tokens} tokens per image, "
            f"expected {grid.num_tokens}"
        )
    if cache.grid is not None:
        for name, words in (
            ("image_size", "for image size"),
            ("vocab_size", "with a vocabulary of"),
            ("stride", "with a tokenizer of stride"),
        ):
            found, expected = getattr(cache.grid, name), getattr(grid, name)
            if found != expected:
                raise UserError(f"{made} {words} {found}, expected {expected}")
    if len(cache.classes) > num_classes:
        raise UserError(
            f"{flag}: {cache.path} has {len(cache.classes)} classes, expected at most the "
            f"{num_classes} of --class_num"
        )
    if cache.fingerprint is None:
        logger.warning("%s: which tokenizer made this cache is not recorded: unchecked", cache.path)
        cache.grid = grid
    elif fingerprint is not None and cache.fingerprint != fingerprint:
        raise UserError(
            f"{made} by the tokenizer {cache.fingerprint[:12]}, expected {fingerprint[:12]} "
            "(--vqgan_path)"
        )
    cache.verify()

"""`from_pretrained`, `save_pretrained` and `push_to_hub` for the networks of this project."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import torch
from huggingface_hub import ModelCard, PyTorchModelHubMixin

from hub import model_card
from hub.download import Access, fetch
from hub.published import PUBLISHED, download, published_names
from hub.weights import (
    FINGERPRINT,
    SAFETENSORS,
    Weights,
    choose_weights,
    load_weights,
    read_weights,
    weights_in_folder,
    write_safetensors,
)
from util.errors import blame

logger = logging.getLogger(__name__)

T = TypeVar("T", bound="Pretrained")

_REPOSITORY = re.compile(r"[\w.-]+/[\w.-]+")
_WHAT = "from_pretrained"


class Pretrained(
    PyTorchModelHubMixin,
    library_name="lpd",
    paper_url=model_card.PAPER,
    model_card_template=model_card.TEMPLATE,
):
    """What the Hub's own mixin offers, and reading what was published before it was used.

    Attributes:
        kind: of the published names that a class can load (`hub.published`).
        description: one sentence for the model card.
        usage: Python lines for the model card.
    """

    kind: ClassVar[str]
    description: ClassVar[str]
    usage: ClassVar[str]

    @property
    def tokenizer_fingerprint(self) -> str | None:
        """Of the tokenizer whose tokens the weights were trained on, if known; saved with them."""
        return self._hub_mixin_config.get(FINGERPRINT)

    @classmethod
    def config_of(cls, weights: Weights, given: Mapping[str, Any]) -> dict[str, Any]:
        """The constructor's arguments for weights whose file does not say them.

        Args:
            weights: of such a file.
            given: arguments that the user gives.

        Raises:
            ValueError: they cannot be told.
        """
        raise NotImplementedError

    @classmethod
    def from_pretrained(
        cls: type[T],
        pretrained_model_name_or_path: str | Path,
        *,
        force_download: bool = False,
        token: str | bool | None = None,
        cache_dir: str | Path | None = None,
        local_files_only: bool = False,
        revision: str | None = None,
        map_location: str | torch.device = "cpu",
        **config: Any,
    ) -> T:
        """A network with trained weights, in eval mode and float32.

        Args:
            pretrained_model_name_or_path: a folder made by `save_pretrained`, a checkpoint, a
                published name (`util/download.py --list`), or a repository `user/name` that holds
                either form. Any but a path may end in `@REVISION`.
            force_download: take the newest commit, and check the cache's contents anew.
            token: of the Hub; False for none, None for the machine's.
            cache_dir: the cache's folder, by default that of HF_HOME.
            local_files_only: download nothing.
            revision: branch, tag or commit; by default the cache's, else the newest of `main`.
            map_location: device of the weights.
            config: arguments of the constructor that are to differ from the file's.

        Raises:
            UserError: there is no such thing, or it is of another network.
        """
        access = Access(cache_dir, token, local_files_only, force_download)
        with blame(_WHAT):
            path = cls._find(str(pretrained_model_name_or_path), revision, access)
        weights = read_weights(path, _WHAT)
        return cls.from_weights(weights, f"{_WHAT}: {path}", config).to(map_location)

    @classmethod
    def from_weights(
        cls: type[T], weights: Weights, what: str, config: Mapping[str, Any] | None = None
    ) -> T:
        """A network in eval mode with the weights of a file.

        Args:
            weights: what the file holds.
            what: the file, for the message.
            config: arguments of the constructor that are to differ from the file's.

        Raises:
            UserError: they are of another network.
        """
        config = dict(config or {})
        with blame(what):
            said = cls.config_of(weights, config) if weights.config is None else weights.config
            config = {**said, **config}
            try:
                with torch.device("meta"):
                    model = cls(**config)
            except (TypeError, ArithmeticError, RuntimeError) as error:
                raise ValueError(
                    f"found configuration {config}, expected {cls.__name__}'s arguments ({error})"
                ) from error
        load_weights(model, weights.state, what)
        if weights.fingerprint:
            model._hub_mixin_config[FINGERPRINT] = weights.fingerprint
        return model.eval()

    @classmethod
    def _find(cls, name: str, revision: str | None, access: Access) -> Path:
        """The file of weights that a user names."""
        path = Path(name)
        if path.is_dir():
            return weights_in_folder(path)
        if path.is_file():
            return path
        name, _, at = name.partition("@")
        revision = revision or at or "main"
        entry = PUBLISHED.get(name)
        if entry is not None and entry.kind == cls.kind:
            return download(f"{name}@{revision}", access)
        if not _REPOSITORY.fullmatch(name):
            names = ", ".join(published_names(cls.kind))
            raise ValueError(
                f"found {name!r}, expected a folder, a checkpoint, a repository user/name, or one "
                f"of {names}"
            )
        choose = choose_weights
        for entry in PUBLISHED.values():
            if (entry.repository, entry.kind) == (name, cls.kind):
                choose = entry.choose
        return fetch(name, choose, revision, access)[-1]

    def _save_pretrained(self, save_directory: Path) -> None:
        """Write the weights; `save_pretrained` adds configuration and card."""
        write_safetensors(self.state_dict(), save_directory / SAFETENSORS)
        card = save_directory / "README.md"
        if card.exists():
            logger.warning("%s is kept as it is: its results may be of other weights", card)

    def generate_model_card(
        self, *, results: Mapping[str, Any] | None = None, **kwargs: Any
    ) -> ModelCard:
        """The card that `save_pretrained` and `push_to_hub` write.

        Args:
            results: what was measured with these weights, such as the JSON of an evaluation; give
                it as `model_card_kwargs={"results": ...}`.
            kwargs: further values for the template.
        """
        values = {
            "title": type(self).__name__,
            "description": self.description,
            "usage": self.usage,
            "config": model_card.rows(self._hub_mixin_config),
            "parameters": f"{sum(value.numel() for value in self.parameters()):,}",
            "results": model_card.result_rows(results),
        }
        return super().generate_model_card(**{**values, **kwargs})

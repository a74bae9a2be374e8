"""`from_pretrained`, `save_pretrained` and `push_to_hub` for the networks of this project."""

import json
import logging
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import torch
from huggingface_hub import ModelCard, PyTorchModelHubMixin

from hub import published
from hub.download import Access, fetch
from hub.weights import FINGERPRINT, Weights, load_weights, read_weights, write_safetensors
from util.errors import blame

logger = logging.getLogger(__name__)

T = TypeVar("T", bound="Pretrained")


class Pretrained(
    PyTorchModelHubMixin,
    library_name="lpd",
    paper_url="https://arxiv.org/abs/2507.01957",
    model_card_template=Path(__file__).with_name("model_card.md").read_text(),
):
    """What the Hub's own mixin offers, and reading what was published before it was used."""

    kind: ClassVar[str]  # of the published names that the class can load
    # For the model card: one sentence, and lines of Python.
    description: ClassVar[str]
    usage: ClassVar[str]

    @property
    def tokenizer_fingerprint(self) -> str | None:
        """Of the tokenizer whose tokens the weights were trained on, if known; saved with them."""
        return self._hub_mixin_config.get(FINGERPRINT)

    @classmethod
    def config_of(cls, weights: Weights, given: Mapping[str, Any]) -> dict[str, Any]:
        """Return the constructor's arguments for weights whose file does not say them.

        `given` are those that the user gives. A `ValueError` if they cannot be told.
        """
        return {}  # the defaults, which are the published ones

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
        """Load a network with trained weights, in eval mode and float32.

        The first argument is a folder of `save_pretrained`, a checkpoint, or a published name
        (`util/download.py --list`) or repository `user/name`, of which `@REVISION` may be part; by
        default it is the cache's, with `force_download` the newest. `config` are arguments of the
        constructor instead of the file's. A `UserError` says what is not there or does not fit.
        """
        access = Access(cache_dir, token, local_files_only, force_download)
        with blame("from_pretrained"):
            path = cls._find(str(pretrained_model_name_or_path), revision, access)
        weights = read_weights(path, "from_pretrained")
        return cls.from_weights(weights, f"from_pretrained: {path}", config).to(map_location)

    @classmethod
    def from_weights(
        cls: type[T], weights: Weights, what: str, config: Mapping[str, Any] | None = None
    ) -> T:
        """Make a network in eval mode with the weights of a file; `config` goes before the file's.

        A `UserError`, which begins with `what`, the file, if they are of another network.
        """
        config = dict(config or {})
        with blame(what):
            stated = cls.config_of(weights, config) if weights.config is None else weights.config
            config = {**stated, **config}
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
        """Find the file of weights that a user names."""
        path = Path(name)
        if path.is_dir():
            return published.weights_in_folder(path)
        if path.is_file():
            return path
        name, _, at = name.partition("@")
        revision, names = revision or at or "main", published.published_names(cls.kind)
        if name in names:
            return published.download(f"{name}@{revision}", access)
        if not re.fullmatch(r"[\w.-]+/[\w.-]+", name):
            raise ValueError(
                f"found {name!r}, expected a folder, a checkpoint, a repository user/name, or one "
                f"of {', '.join(names)}"
            )
        entries = (published.PUBLISHED[other] for other in names)
        choosers = {entry.repository: entry.choose for entry in entries}
        return fetch(name, choosers.get(name, published.choose_weights), revision, access)[-1]

    def _save_pretrained(self, save_directory: Path) -> None:
        # `save_pretrained` adds configuration and card.
        write_safetensors(self.state_dict(), save_directory / published.SAFETENSORS)
        card = save_directory / "README.md"
        if card.exists():
            logger.warning("%s is kept as it is: its results may be of other weights", card)

    def generate_model_card(
        self, *, results: Mapping[str, Any] | None = None, **kwargs: Any
    ) -> ModelCard:
        """Make the card that `save_pretrained` and `push_to_hub` write.

        `results` is what was measured with these weights, such as the JSON of an evaluation; give
        it as `model_card_kwargs={"results": ...}`. `kwargs` are further values for the template.
        """
        results = results or {}
        if "num_images" in results and "scores" in results:
            # A metrics.json: scores in words (`FID-5K: 12.3`) for the numbers behind num_images.
            settings = list(results)[: list(results).index("num_images") + 1]
            scores = dict(line.partition(": ")[::2] for line in results["scores"])
            results = {**{name: results[name] for name in settings}, **scores}
        values = {
            "title": type(self).__name__,
            "description": self.description,
            "usage": self.usage,
            "config": _rows(self._hub_mixin_config),
            "parameters": f"{sum(value.numel() for value in self.parameters()):,}",
            "results": _rows(results),
        }
        return super().generate_model_card(**{**values, **kwargs})


def _rows(values: Mapping[str, Any]) -> list[list[str]]:
    """Names and values for a table; what is no text is written as JSON."""
    texts = (text if isinstance(text, str) else json.dumps(text) for text in values.values())
    rows = zip(values, texts, strict=True)
    return [[" ".join(text.split()).replace("|", r"\|") for text in row] for row in rows]

"""Writing checkpoints beside training."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Any

import torch

from util import distributed
from util.checkpoints.files import atomic_save
from util.checkpoints.training_state import LAST, PREVIOUS
from util.errors import blame

logger = logging.getLogger(__name__)


class CheckpointSaver:
    """Copies a training state to the host and writes it while training goes on, one at a time.

    `LAST` becomes `PREVIOUS` when its successor is complete. Leaving the block waits for the file
    that is being written.

    Args:
        folder: an existing folder.
        last_is_good: whether the `LAST` that it holds may become `PREVIOUS`.
    """

    def __init__(self, folder: Path, last_is_good: bool = True) -> None:
        self._folder = folder
        self._last_is_good = last_is_good
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._writing: Future[None] | None = None
        # Page-locked on a GPU machine, where getting it takes longer than the copy: kept.
        self._buffers: dict[tuple, torch.Tensor] = {}

    @property
    def failed(self) -> bool:
        """Whether the last file could not be written, as far as is known."""
        writing = self._writing
        return writing is not None and writing.done() and writing.exception() is not None

    def reserve(self, content: dict[str, Any]) -> None:
        """Get the memory that saving `content` takes, so that the first save need not."""
        if distributed.is_main():
            self._map(content, self._buffer)

    def save(self, content: dict[str, Any], names: Sequence[str]) -> None:
        """Copy `content` and have it written; all processes call it, rank 0 writes.

        Args:
            content: what to save; its tensors may change as soon as this returns.
            names: of the files.

        Raises:
            UserError: on all processes, if the file before could not be written.
        """
        started = time.perf_counter()
        self.wait()
        if distributed.is_main():
            copying = _DeviceTime()
            copy = self._map(content, self._copy)
            copying.stop()
            waited = time.perf_counter() - started
            self._writing = self._thread.submit(self._write, copy, names, copying, waited)

    def wait(self) -> None:
        """Wait for the file that is being written; all processes call it.

        Raises:
            UserError: on all processes, if it could not be written.
        """

        def settle() -> None:
            if self._writing is not None:
                writing, self._writing = self._writing, None
                with blame("--output_dir"):
                    writing.result()

        distributed.fail_together(settle)

    def __enter__(self) -> CheckpointSaver:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._thread.shutdown()

    def _write(
        self, content: dict[str, Any], names: Sequence[str], copying: _DeviceTime, waited: float
    ) -> None:
        waited += copying.wait()
        started = time.perf_counter()
        for name in names:
            rotates = name == LAST and self._last_is_good
            previous = self._folder / PREVIOUS if rotates else None
            atomic_save(content, self._folder / name, previous)
            self._last_is_good |= name == LAST
        logger.info(
            "saved %s in %.1f s beside training; the step waited %.2f s",
            " and ".join(names),
            time.perf_counter() - started,
            waited,
        )

    def _map(self, content: Any, function: Any, key: tuple = ()) -> Any:
        """`content` with `function(key, tensor)` in the place of every tensor."""
        if isinstance(content, dict):
            return {
                name: self._map(value, function, (*key, name)) for name, value in content.items()
            }
        if isinstance(content, list | tuple):
            return type(content)(
                self._map(value, function, (*key, place)) for place, value in enumerate(content)
            )
        return function(key, content) if isinstance(content, torch.Tensor) else content

    def _buffer(self, key: tuple, tensor: torch.Tensor) -> torch.Tensor:
        """Host memory for a tensor, the same at every save."""
        buffer = self._buffers.get(key)
        if buffer is None or (buffer.shape, buffer.dtype) != (tensor.shape, tensor.dtype):
            buffer = torch.empty_like(tensor, device="cpu", pin_memory=tensor.is_cuda)
            self._buffers[key] = buffer
        return buffer

    def _copy(self, key: tuple, tensor: torch.Tensor) -> torch.Tensor:
        return self._buffer(key, tensor).copy_(tensor, non_blocking=True)


class _DeviceTime:
    """How long a GPU is busy with what is queued between making this and `stop`; 0 without one."""

    def __init__(self) -> None:
        on_gpu = torch.cuda.is_initialized()
        self._events = [torch.cuda.Event(enable_timing=True) for _ in range(2 * on_gpu)]
        self._record(0)

    def stop(self) -> None:
        self._record(1)

    def wait(self) -> float:
        """Wait until all of it is done; seconds it took."""
        if not self._events:
            return 0.0
        start, end = self._events
        end.synchronize()
        return start.elapsed_time(end) / 1000

    def _record(self, number: int) -> None:
        if self._events:
            self._events[number].record()

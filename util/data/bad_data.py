"""Training data that one process of several cannot read."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from util import distributed
from util.errors import UserError, describe_os_error

T = TypeVar("T")


class BadData:
    """What the data of this process met, until all processes know and stop together.

    A process that stopped by itself would leave the others waiting for its gradients. So it takes
    part in the step with a substitute; the processes tell one another after the step
    (`util.runs.watch`), and nothing is saved of it.
    """

    def __init__(self) -> None:
        self._error: UserError | None = None

    @property
    def found(self) -> bool:
        """Whether this process has met some."""
        return self._error is not None

    def read(self, work: Callable[[], T], substitute: Callable[[], T]) -> T:
        """The result of `work`; of `substitute` from the first bad input on.

        Raises:
            UserError: bad input, where this process is the only one.
        """
        if distributed.world_size() == 1:
            return work()
        if self._error is None:
            try:
                return work()
            except UserError as error:
                self._error = error
            except OSError as error:
                self._error = UserError(describe_os_error(error))
        return substitute()

    def check(self) -> None:
        """See whether any process has met some; all processes call it.

        Raises:
            UserError: on all processes, if so.
        """

        def tell() -> None:
            if self._error is not None:
                raise self._error

        distributed.fail_together(tell)

"""What may surround a network while it is recorded: a function mode that runs its calls in another way, as slabs do."""

from contextlib import AbstractContextManager
from typing import Any, Protocol

from torch import Tensor

from lampseg.recording.kernel import Kernel


class Around(Protocol):
    """A mode, and what it must be told again when a part of the network runs without what came before it."""

    shape: tuple[int, ...]
    """Of the whole input."""

    def local(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """The shape of the part of an input that the network is given."""

    def begin(self, x: Tensor) -> Tensor:
        """Starts a pass; the input, marked as that part."""

    def mode(self) -> AbstractContextManager[Any]:
        """Within it the network runs."""

    def note(self, tensor: Tensor) -> Any:
        """What the mode knows of a tensor, to be given back to it with a copy of that tensor."""

    def marked(self, tensor: Tensor, note: Any) -> Tensor:
        """A copy of a tensor of which this was noted, made known to the mode."""

    def placed(self, mine: Tensor) -> Tensor:
        """My part of a target of the loss (the last dimensions are the input's spatial ones), made known to it."""

    def state(self) -> Any:
        """What it has learnt in this pass so far, hashable or at least comparable; never changed afterwards."""

    def messages(self) -> tuple[Kernel, ...]:
        """What it has sent to others since it was last asked."""

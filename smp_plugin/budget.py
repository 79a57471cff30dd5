"""How long a run takes, and how far it is."""

from __future__ import annotations

import time
from collections.abc import Callable


class Budget:
    """How far the run is, 0 to 1: by steps, or by wall-clock where ``minutes`` are given (time before a resume counts).

    Several processes go by the first one's clock: by clocks of their own they would take different steps, and their weights drift apart.
    """

    def __init__(self, steps: int, minutes: float) -> None:
        self.steps, self.seconds = steps, 60 * minutes
        self.started, self.spent = time.monotonic(), 0.0
        self.agreed: tuple[int, float, float] | None = None  # a step, the first process's seconds before it, and those it takes for a step

    def start(self) -> None:
        """The clock runs from now."""
        self.started = time.monotonic()

    @property
    def elapsed(self) -> float:
        """Seconds of training so far."""
        return self.spent + time.monotonic() - self.started

    def progress(self, step: int) -> float:
        """Share of the run that is over before ``step``."""
        if not self.seconds:
            return min(1.0, step / self.steps)
        since, elapsed, pace = self.agreed or (step, self.elapsed, 0.0)
        return min(1.0, (elapsed + (step - since) * pace) / self.seconds)

    def agree(self, step: int, of_first: Callable[[tuple[int, float, float]], tuple[int, float, float]], paused: bool) -> None:
        """Before ``step``, in all processes: set the clock by the first one's, which ``of_first`` sends, and go on by its pace.

        ``paused``: something else than training was done since the last time, so the pace stays.
        """
        elapsed = self.elapsed
        since, then, pace = self.agreed or (step, elapsed, 0.0)
        self.agreed = of_first((step, elapsed, pace if paused or step == since else (elapsed - then) / (step - since)))

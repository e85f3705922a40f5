"""Time left over all stages of a run by minutes: one countdown from the first report to the last."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

from amvlm.events import AnyEvent, Progress

TRAINING = 0.8
AFTER = {
    "training": 0.2, "labelling the other scans": 0.65, "training on all scans": 0.17, "teaching the text mask": 0.05,
    "measuring": 0.0,
}  # fmt: skip
"""Share of the minutes that comes after a stage; the second training is a part of the first one's share."""


def counted_down(
    events: Iterator[AnyEvent], minutes: float, now: Callable[[], float] = time.monotonic
) -> Iterator[AnyEvent]:
    """Replace every report's ``seconds_left``, which knows its own stage alone, by the seconds to the run's end.

    What is left of a stage is told by its pace, what comes after it by its share of the minutes. A stage without a
    share, such as reading images, comes on top.
    """
    countdown = _Countdown(60 * minutes, now)
    for event in events:
        if isinstance(event, Progress):
            event = event.model_copy(update={"seconds_left": round(countdown.left(event), 1)})
        yield event


class _Countdown:
    def __init__(self, seconds: float, now: Callable[[], float]) -> None:
        self._seconds, self._now = seconds, now
        self._stage, self._first, self._began = "", 0, now()
        self._after = 1.0

    def left(self, event: Progress) -> float:
        """Seconds to the end of the run."""
        if event.stage != self._stage:
            self._stage, self._first, self._began = event.stage, event.step, self._now()
            self._after = AFTER.get(event.stage, self._after)
        return self._own(event) + self._after * self._seconds

    def _own(self, event: Progress) -> float:
        done, rest = event.step - self._first, event.steps - event.step
        if done > 0:
            return (self._now() - self._began) / done * rest
        share = TRAINING if event.stage.startswith("training") else 0.0
        return share * self._seconds * rest / max(1, event.steps)

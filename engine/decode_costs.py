"""How many sequences may decode beside live ones without slowing them noticeably, learnt from how long steps take."""

from __future__ import annotations

from itertools import pairwise

_WEIGHT = 0.25  # of a new measurement
_FRESH = 32  # steps for which the time of the live sequences alone is believed
_KNOWN = 256  # steps for which any other time is


class DecodeCosts:
    """Remembers how long a step of so many decodes takes, for each number that was met lately.

    The time of the live ones alone is measured anew every _FRESH steps. Between numbers that are known the time is
    taken to grow evenly; beyond the largest that is still quick enough, one more is tried at a time.
    """

    def __init__(self, share: float) -> None:
        """`share` is how much longer a step may take, as a part of what the live sequences take alone."""
        self._share = share
        self._num_steps = 0
        self._seconds: dict[int, tuple[float, int]] = {}  # decodes -> (seconds, number of the step that said so last)

    def observe(self, num_decodes: int, seconds: float) -> None:
        """Take in how long a step took that had decodes only."""
        self._num_steps += 1
        before, number = self._seconds.get(num_decodes, (seconds, self._num_steps))
        weight = _WEIGHT if self._num_steps - number <= _KNOWN else 1.0
        self._seconds[num_decodes] = before + weight * (seconds - before), self._num_steps

    def beside(self, num_live: int) -> int:
        """How many more may decode beside so many live ones."""
        points = self._known(num_live)
        if not points:
            return 0
        best, most = num_live, points[0][1] * (1 + self._share)
        for (before, least), (num_decodes, seconds) in pairwise(points):
            if seconds > most:
                each = (seconds - least) / (num_decodes - before)
                return before + int((most - least) / each + 1e-6) - num_live
            best = num_decodes
        return best + 1 - num_live

    def seconds_left(self, num_live: int, num_more: int) -> float:
        """For how long such a step may do other things."""
        points, num_decodes = self._known(num_live), num_live + num_more
        if not points or num_decodes > points[-1][0]:
            return 0.0
        most, taken = points[0][1] * (1 + self._share), points[0][1]
        for (before, least), (after, seconds) in pairwise(points):
            if before < num_decodes <= after:
                taken = least + (seconds - least) * (num_decodes - before) / (after - before)
        return max(0.0, most - taken)

    def _known(self, num_live: int) -> list[tuple[int, float]]:
        """(decodes, seconds) from the live ones alone upwards; empty if those must be measured first."""
        alone, number = self._seconds.get(num_live, (0.0, -_FRESH))
        if not self._share or self._num_steps - number >= _FRESH:
            return []
        more = ((n, *self._seconds[n]) for n in sorted(self._seconds) if n > num_live)
        return [(num_live, alone), *((n, seconds) for n, seconds, at in more if self._num_steps - at <= _KNOWN)]

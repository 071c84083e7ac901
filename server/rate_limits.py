"""How much one client may ask: requests under way, requests a minute, tokens a minute.

What is allowed in a minute is a bucket that is full at first and refills evenly, as OpenAI's and Anthropic's are. A
request's tokens are estimated when it comes and settled when it ends, so a bucket may be overdrawn; over time no client
gets more than its rate. Costs: O(1) a request, and two numbers for each limit of a client.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from engine.errors import RateLimitError

if TYPE_CHECKING:
    from collections.abc import Callable

NO_KEY = "none"  # what metrics and logs call the key of those who need none
MAX_CLIENTS = 10_000  # that are remembered; those beyond it that asked longest ago begin with full buckets again


@dataclass(frozen=True, slots=True)
class RateLimits:
    """One client's limits; None is no limit.

    Attributes:
        max_requests: under way at a time.
    """

    max_requests: int | None = None
    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None

    def __bool__(self) -> bool:
        return self != NO_LIMITS


NO_LIMITS = RateLimits()


class Bucket:
    """What is left of a minute's allowance. `per_minute` is given with each call, since it may change."""

    __slots__ = ("_level", "_time")

    def __init__(self, per_minute: int, now: float) -> None:
        self._level, self._time = float(per_minute), now

    def refill(self, per_minute: int, now: float) -> float:
        """Return what is left now; below 0 if it is overdrawn."""
        refilled = self._level + (now - self._time) * per_minute / 60
        self._level, self._time = min(float(per_minute), refilled), now
        return self._level

    def wait(self, amount: float, per_minute: int, now: float) -> float:
        """Return after how many seconds so much may be taken. A full bucket lets anything be taken."""
        missing = min(amount, per_minute) - self.refill(per_minute, now)
        return max(0.0, missing * 60 / per_minute)

    def take(self, amount: float) -> None:
        """Take so much, which may be more than is left; a negative amount gives back."""
        self._level -= amount


@dataclass(slots=True)
class Client:
    """What one client has under way, and its buckets; one is made when it is first limited."""

    num_running: int = 0
    buckets: dict[str, Bucket] = field(default_factory=dict)


class Clients:
    """All clients that were limited lately."""

    def __init__(
        self,
        count_refused: Callable[[str, str], None] = lambda *_: None,
        clock: Callable[[], float] = time.monotonic,
        max_clients: int = MAX_CLIENTS,
    ) -> None:
        """`count_refused` is called with a key's name and the limit for each refusal."""
        self.count_refused, self.clock = count_refused, clock
        self._clients: OrderedDict[bytes | str, Client] = OrderedDict()
        self._max_clients = max_clients

    def __len__(self) -> int:
        return len(self._clients)

    def allowance(self, identity: bytes | str, name: str, limits: RateLimits) -> Allowance:
        """Return what a request of a client may use, which nothing is taken of yet."""
        client = self._clients.get(identity)
        if client is None:
            client = self._clients[identity] = Client()
            self._forget()
        else:
            self._clients.move_to_end(identity)
        return Allowance(self, client, name, limits)

    def _forget(self) -> None:
        """Forget who asked longest ago and has nothing under way. A few are looked at, so that the cost is bounded."""
        for _ in range(4):
            if len(self._clients) > self._max_clients:
                identity, client = self._clients.popitem(last=False)
                if client.num_running:
                    self._clients[identity] = client


class Allowance:
    """What one request may use: `begin` it, `reserve` its tokens once they can be estimated, `end` it."""

    def __init__(self, clients: Clients, client: Client, name: str, limits: RateLimits) -> None:
        self._clients, self._client, self._name, self._limits = clients, client, name, limits
        self._has_begun, self._num_reserved = False, 0.0

    def begin(self) -> None:
        """Count the request.

        Raises:
            RateLimitError: the client has too many under way, or has used up its requests or tokens.
        """
        limits, client = self._limits, self._client
        if limits.max_requests is not None and client.num_running >= limits.max_requests:
            self._refuse("running", f"{limits.max_requests} requests at a time, and as many run", 1.0)
        if limits.requests_per_minute is not None:
            self._check("requests", 1, limits.requests_per_minute)
        if limits.tokens_per_minute is not None:
            self._check("tokens", 1, limits.tokens_per_minute)
        if limits.requests_per_minute is not None:
            self._bucket("requests", limits.requests_per_minute).take(1)
        self._has_begun = True
        client.num_running += 1

    def reserve(self, num_tokens: int) -> None:
        """Take a request's tokens, as estimated.

        Raises:
            RateLimitError: the client has not so many left. A client that has used none may exceed its rate by one
                request, and then waits the longer.
        """
        if (per_minute := self._limits.tokens_per_minute) is None:
            return
        try:
            self._check("tokens", num_tokens, per_minute)
        except RateLimitError:
            if (requests := self._limits.requests_per_minute) is not None:  # what is refused takes nothing
                self._bucket("requests", requests).take(-1)
            raise
        self._bucket("tokens", per_minute).take(num_tokens)
        self._num_reserved += num_tokens

    def end(self, num_tokens: int) -> None:
        """Settle with the tokens that the request really took."""
        if self._has_begun:
            self._client.num_running -= 1
            if (per_minute := self._limits.tokens_per_minute) is not None:
                self._bucket("tokens", per_minute).take(num_tokens - self._num_reserved)

    def headers(self) -> list[tuple[bytes, bytes]]:
        """Return OpenAI's headers about what is left of each minute's allowance."""
        headers, now = [], self._clients.clock()
        for what, per_minute in (
            ("requests", self._limits.requests_per_minute),
            ("tokens", self._limits.tokens_per_minute),
        ):
            if per_minute is not None:
                left = self._bucket(what, per_minute).refill(per_minute, now)
                seconds = (per_minute - left) * 60 / per_minute
                headers += [
                    (f"x-ratelimit-limit-{what}".encode(), b"%d" % per_minute),
                    (f"x-ratelimit-remaining-{what}".encode(), b"%d" % max(0, int(left))),
                    (f"x-ratelimit-reset-{what}".encode(), duration(seconds).encode()),
                ]
        return headers

    def _bucket(self, what: str, per_minute: int) -> Bucket:
        if (bucket := self._client.buckets.get(what)) is None:
            bucket = self._client.buckets[what] = Bucket(per_minute, self._clients.clock())
        return bucket

    def _check(self, what: str, amount: int, per_minute: int) -> None:
        bucket, now = self._bucket(what, per_minute), self._clients.clock()
        if (seconds := bucket.wait(amount, per_minute, now)) > 0:
            left = max(0, int(bucket.refill(per_minute, now)))
            asked = f", and this one takes about {amount}" if amount > 1 else ""
            self._refuse(what, f"{per_minute} {what} a minute: {left} are left{asked}", seconds)

    def _refuse(self, what: str, text: str, seconds: float) -> None:
        self._clients.count_refused(self._name, what)
        whose = "of this address" if self._name == NO_KEY else f"of the key '{self._name}'"
        raise RateLimitError(f"The limit {whose} is {text}. Try again in {duration(seconds)}.", seconds)


def duration(seconds: float) -> str:
    """Return a time as OpenAI's headers write it: 20ms, 1.5s, 6m0s."""
    if seconds < 1:
        return f"{max(0, round(seconds * 1000))}ms"
    minutes, rest = divmod(round(seconds, 3), 60)
    text = f"{rest:.3f}".rstrip("0").rstrip(".")
    return f"{int(minutes)}m{text}s" if minutes else f"{text}s"

"""What a judge may spend, and has spent."""

from __future__ import annotations

from dataclasses import dataclass
from threading import Lock
from typing import NamedTuple

from bae_lens.checks.fields import Number, check_fields, whole
from bae_lens.scoring.judges.judge import LimitReached

_RULES = {
    "max_calls": whole(0, or_none=True),
    "max_tokens": whole(0, or_none=True),
    "max_cost": Number(least=0, or_none=True),
    "price_in": Number(least=0),
    "price_out": Number(least=0),
}


@dataclass(frozen=True)
class Limits:
    """What may be spent in the life of a judge; None: any amount.

    Args:
        max_calls (int | None): Requests that may be sent, failed ones too.
        max_tokens (int | None): Tokens that may be used, of questions and answers.
        max_cost (float | None): What may be spent, in the unit of the prices.
        price_in (float): Of a million tokens of questions.
        price_out (float): Of a million tokens of answers.

    Raises:
        ValueError: if a value is no number or negative, or there is a ``max_cost`` without a price.
    """

    max_calls: int | None = None
    max_tokens: int | None = None
    max_cost: float | None = None
    price_in: float = 0.0
    price_out: float = 0.0

    def __post_init__(self) -> None:
        check_fields(self, _RULES)
        if self.max_cost is not None and not self.price_in + self.price_out > 0:
            raise ValueError("max_cost needs price_in and price_out; both are 0.")

    def cost_of(self, tokens_in: int, tokens_out: int) -> float:
        """By the prices."""
        return (tokens_in * self.price_in + tokens_out * self.price_out) / 1e6


class Spent(NamedTuple):
    """What a judge has used since it was made.

    Attributes:
        calls: requests sent.
        tokens_in: of questions, as the endpoint counts them, or a third of the bytes where it
            does not say.
        tokens_out: of answers, the same.
        cost: by the prices.
    """

    calls: int = 0
    tokens_in: int = 0
    tokens_out: int = 0
    cost: float = 0.0


class Budget:
    """What may be spent. A request has what it may use set aside before it is sent, so that requests
    at the same time stay within limits together."""

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self.spent = Spent()
        self._set_aside: list[tuple[int, int]] = []
        self._lock = Lock()

    def take(self, expected: tuple[int, int]) -> None:
        """Set aside a call with so many tokens of question and of answer.

        Raises:
            LimitReached: if it may go over a limit.
        """
        with self._lock:
            held = [*self._set_aside, expected]
            tokens = self.spent.tokens_in + self.spent.tokens_out + sum(map(sum, held))
            after = (
                ("max_calls", self.spent.calls + 1),
                ("max_tokens", tokens),
                ("max_cost", self.spent.cost + sum(self.limits.cost_of(*h) for h in held)),
            )
            for name, value in after:
                limit = getattr(self.limits, name)
                if limit is not None and value > limit:
                    raise LimitReached(
                        f"The judge stopped before {name} = {limit:g} would be passed, after "
                        f"{self.spent.calls} calls. Answers are kept in the cache: run again, with "
                        "a higher limit or as it is, and only what is left is asked."
                    )
            self._set_aside.append(expected)
            self.spent = self.spent._replace(calls=self.spent.calls + 1)

    def settle(self, expected: tuple[int, int], used: tuple[int, int]) -> None:
        """What was set aside is replaced by what was used."""
        with self._lock:
            self._set_aside.remove(expected)
            self.spent = Spent(
                self.spent.calls,
                self.spent.tokens_in + used[0],
                self.spent.tokens_out + used[1],
                self.spent.cost + self.limits.cost_of(*used),
            )

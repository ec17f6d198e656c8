"""A game of three turns: the environment names a digit, and pays for saying a larger one."""

import random
from collections.abc import Mapping

from klent.environments import Step


class Larger:
    """Names a digit; the policy is paid for saying a larger one, three times."""

    def reset(self, row: Mapping[str, object], seed: int) -> list[dict[str, str]]:
        self.random = random.Random(seed)
        self.turn = 0
        return [{"role": "user", "content": self._ask()}]

    def step(self, action: str) -> Step:
        self.turn += 1
        digits = [int(letter) for letter in action if letter in "0123456789"]
        reward = float(bool(digits) and digits[0] > self.digit)
        return Step(self._ask(), reward, done=self.turn == 3)

    def _ask(self) -> str:
        self.digit = self.random.randrange(9)
        return f"say more than {self.digit}"

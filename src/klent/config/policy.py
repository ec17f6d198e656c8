"""The section `policy`: what is trained."""

from typing import Literal

from klent.config.base import Settings


class PolicySettings(Settings):
    """What the model is trained to be."""

    kind: Literal["causal_lm", "reward_model"] = "causal_lm"
    """`causal_lm` writes text; `reward_model` gives each text one number, for loss: {bradley_terry: {}}."""
    centre_on: str | None = None
    """Of a reward model: a file with `prompt` and `completion` whose mean score is set to 0 at the end, such as the
    SFT policy's answers; null = the held-out pairs."""

    @property
    def scores(self) -> bool:
        """Whether it gives texts a score, and no action a probability."""
        return self.kind == "reward_model"

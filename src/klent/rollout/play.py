"""Episodes of several turns: an environment speaks, an engine answers, tokens in and tokens out."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from klent.environments import Environment, Step
from klent.kit.seeds import derive_seed
from klent.rollout.engine import Engine
from klent.streams.episode import Episode
from klent.streams.prompt import Prompt
from klent.tasks import Scores

Encode = Callable[[str], list[int]]


class EnvironmentSource:
    """Episodes played in an environment.

    What the policy wrote is never decoded and tokenised again: a turn appends token ids to those that the
    policy has written and read. The tokens of an observation are in the episode and not acted, so that no
    objective gives them a coefficient.

    Args:
        environment: makes a fresh one for each episode.
        rows: what episodes are reset with, in the order of training; they are taken in turns.
        engine: answers.
        encode: token ids of what the environment says between turns.
        prompts_per_step: rows per step.
        group_size: episodes from each row, all with the same start.
        max_turns: an episode that goes on longer is cut.
        seed: of the run.
    """

    def __init__(
        self,
        environment: Callable[[], Environment],
        rows: Sequence[Mapping[str, object]],
        engine: Engine,
        encode: Encode,
        *,
        prompts_per_step: int,
        group_size: int,
        max_turns: int,
        seed: int,
    ) -> None:
        self.environment = environment
        self.rows = rows
        self.engine = engine
        self.encode = encode
        self.prompts_per_step = prompts_per_step
        self.group_size = group_size
        self.max_turns = max_turns
        self.seed = seed

    def collect(self, step: int) -> list[Episode]:
        """Play every row of the step to its end."""
        first = (step - 1) * self.prompts_per_step
        games = [
            self._game(first + number // self.group_size, number)
            for number in range(self.prompts_per_step * self.group_size)
        ]
        for turn in range(self.max_turns):
            going = [game for game in games if not game.done]
            if not going:
                break
            seed = derive_seed(self.seed, "rollout", step, turn)
            answers = self.engine.generate([game.prompt() for game in going], group_size=1, seed=seed)
            for game, answer in zip(going, answers, strict=True):
                game.take(answer)
        return [game.finished() for game in games]

    def score(self, episodes: Sequence[Episode]) -> Scores | None:
        """The return of each episode: the sum of the rewards of its turns."""
        return Scores(reward=[sum(episode.rewards) for episode in episodes], parts={}, problems={})

    def _game(self, position: int, number: int) -> "_Game":
        row = self.rows[position % len(self.rows)]
        environment = self.environment()
        seed = derive_seed(self.seed, "environment", position)
        opening = environment.reset(row, seed)
        prompt = Prompt(f"row/{position % len(self.rows)}", opening, dict(row))
        return _Game(environment, prompt, self.encode)


class _Game:
    """One episode under way."""

    def __init__(self, environment: Environment, prompt: Prompt, encode: Encode) -> None:
        self.environment = environment
        self.start = prompt
        self.encode = encode
        self.done = self.cut = False
        self.episode: Episode | None = None
        self.observation: list[int] = []

    def prompt(self) -> Prompt:
        """What the policy reads next: the opening, or every token so far and the newest observation."""
        if self.episode is None:
            return self.start
        ids = [*self.episode.prompt_ids, *self.episode.tokens.tolist(), *self.observation]
        return replace(self.start, token_ids=ids)

    def take(self, answer: Episode) -> None:
        """Act, and hear what the environment says."""
        outcome = self.environment.step(answer.text)
        if self.episode is None:
            self.episode = replace(answer, rewards=(outcome.reward,))
        else:
            self.episode = self.episode.followed_by(self.observation, answer, outcome.reward)
        self.cut = answer.finish == "length" and not outcome.done
        self.done = outcome.done or self.cut
        self.observation = [] if self.done else self.encode(_said(outcome))

    def finished(self) -> Episode:
        """The whole episode, and whether a budget of tokens or turns cut it."""
        assert self.episode is not None
        ended = self.done and not self.cut
        return replace(self.episode, prompt=self.start, finish="stop" if ended else "length")


def _said(outcome: Step) -> str:
    if isinstance(outcome.observation, str):
        return outcome.observation
    return "\n".join(message["content"] for message in outcome.observation)

"""Episodes of several turns: an environment speaks, an engine answers, tokens in and tokens out."""

import math
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace

from klent.errors import DataError, KlentError, ModelError
from klent.kit.seeds import derive_seed
from klent.models.chat import context_length
from klent.models.load import LoadedModel
from klent.models.spoken import opening_ids, reply_ids
from klent.policies.policy import Policy
from klent.rollout.engine import Engine, SyncCertificate
from klent.rollout.transformers_engine import TransformersEngine
from klent.streams.episode import Episode
from klent.streams.prompt import Prompt
from klent.tasks.pool import Answer, EnvironmentPool, Play
from klent.tasks.starts import start_of


class PlayEngine:
    """An :class:`klent.rollout.engine.Engine` whose answer to an opening is the whole episode.

    What the policy wrote is never decoded and tokenised again: a turn appends token ids to those that the
    policy has written and read. The tokens of what the environment says are in the episode and not acted, so
    that no objective gives them a coefficient. Turn by turn, the episodes that go on are answered together;
    each draws with random numbers of its own, whatever becomes of the others, and reads what is new to it.

    Args:
        engine: answers a turn; its ``max_tokens`` is the longest.
        pool: the environments.
        loaded: the model whose tokenizer and context are the engine's.
        max_turns: an episode that goes on longer is cut.
        max_tokens: the most tokens that the policy writes in all turns of an episode.
        turn_tokens: the most that it writes in one.
    """

    def __init__(
        self,
        engine: Engine,
        pool: EnvironmentPool,
        loaded: LoadedModel,
        *,
        max_turns: int,
        max_tokens: int,
        turn_tokens: int,
    ) -> None:
        self.engine = engine
        self.pool = pool
        self.loaded = loaded
        self.max_turns = max_turns
        self.max_tokens = max_tokens
        self.turn_tokens = turn_tokens
        self.limit = engine.limit if isinstance(engine, TransformersEngine) else context_length(loaded.model)

    def generate(self, prompts: Sequence[Prompt], *, group_size: int, seed: int) -> list[Episode]:
        """``group_size`` episodes from every opening, each played to its end."""
        keeping = self.engine.keeping() if isinstance(self.engine, TransformersEngine) else nullcontext()
        with keeping:
            return self._play(prompts, group_size, seed)

    def _play(self, prompts: Sequence[Prompt], group_size: int, seed: int) -> list[Episode]:
        self.pool.begin()
        opened = [self._opened(prompt) for prompt in prompts]
        first = self.engine.generate(opened, group_size=group_size, seed=seed)
        games = [
            _Game(prompt.drawn_at(place) * group_size + k, prompt)
            for place, prompt in enumerate(opened)
            for k in range(group_size)
        ]
        self._hear(games, first)
        for turn in range(1, self.max_turns):
            going = [game for game in games if not game.done and self._room(game) > 0]
            if not going:
                break
            asked = [game.prompt(self._room(game)) for game in going]
            self._hear(going, self.engine.generate(asked, group_size=1, seed=derive_seed(seed, "turn", turn)))
        asking = (prompt for prompt in prompts for _ in range(group_size))
        return [game.finished(prompt) for game, prompt in zip(games, asking, strict=True)]

    def check(self, prompt: Prompt) -> None:
        """Refuse an opening that cannot be answered."""
        self.engine.check(self._opened(prompt))

    def sync(self, policy: Policy) -> SyncCertificate | None:
        """Take over the policy's weights."""
        return self.engine.sync(policy)

    def _opened(self, prompt: Prompt) -> Prompt:
        try:
            ids = opening_ids(self.loaded.tokenizer, prompt.prompt, prompt.template)
        except (ModelError, DataError) as error:
            raise type(error)(f"{prompt.id}: {error}") from error
        return replace(prompt, token_ids=ids, room=self.turn_tokens)

    def _room(self, game: "_Game") -> int:
        """The most tokens that the policy may write in an episode's next turn."""
        return min(self.turn_tokens, self.max_tokens - game.acted, self.limit - len(game.ids))

    def _hear(self, games: Sequence["_Game"], answers: Sequence[Episode]) -> None:
        """Every one of these episodes acts, and hears what its environment says."""
        for game, answer in zip(games, answers, strict=True):
            game.act(answer)
        said = self.pool.step([game.play for game in games])
        for game, reply in zip(games, said, strict=True):
            try:
                game.hear(reply, [] if reply.done else self._reply_ids(game, reply))
            except KlentError as error:  # what one environment says must not end the run
                game.hear(Answer(problem=f"{self.pool.name} said what cannot be rendered: {error}"), [])

    def _reply_ids(self, game: "_Game", reply: Answer) -> list[int]:
        ended = game.answer.tokens[-1].item() in self.loaded.stop_ids
        opening, template = game.opened.prompt, game.opened.template
        ids = reply_ids(self.loaded.tokenizer, opening, reply.observation, template, ended=ended)
        self.loaded.check_ids(ids, f"what is said in {game.opened.id}")
        return ids


class _Game:
    """One episode under way.

    Attributes:
        ids: every token that the policy has read and written, and what it reads next.
        acted: how many of them it wrote.
        read: how many it has read; the last that it wrote is not among them.
    """

    def __init__(self, number: int, opened: Prompt) -> None:
        self.number = number
        self.opened = opened
        self.play = Play(opened.id, start_of(opened), number)
        self.ids = list(opened.token_ids or ())
        self.acted = self.read = 0
        self.done = False
        self.problem = ""
        self.episode: Episode | None = None
        self.answer: Episode
        self.heard: list[int] = []

    def prompt(self, room: int) -> Prompt:
        """What the policy is asked next."""
        return replace(self.opened, token_ids=self.ids, read=self.read, room=room, number=self.number)

    def act(self, answer: Episode) -> None:
        """The policy's turn."""
        self.answer = answer
        self.play.actions.append(answer.text)
        self.acted += len(answer.tokens)
        self.ids = [*self.ids, *answer.tokens.tolist()]
        self.read = len(self.ids) - 1

    def hear(self, said: Answer, ids: list[int]) -> None:
        """The environment's."""
        reward = math.nan if said.problem else said.reward
        if self.episode is None:
            self.episode = replace(self.answer, rewards=(reward,))
        else:
            self.episode = self.episode.followed_by(self.heard, self.answer, reward)
        self.done, self.problem = said.done, said.problem
        self.heard = ids
        self.ids = [*self.ids, *ids]

    def finished(self, prompt: Prompt) -> Episode:
        """The whole episode, and whether a budget of tokens or turns cut it."""
        assert self.episode is not None
        finish = "stop" if self.done else "length"
        return replace(self.episode, prompt=prompt, finish=finish, problem=self.problem)  # type: ignore[arg-type]

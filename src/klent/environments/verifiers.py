"""Environments of the library verifiers, played turn by turn: its servers, programs and clients are left out.

There an environment is a coroutine that asks the agent in its seat for one turn after another, and the agent is a
program that calls a model over HTTP. Here :class:`_Seat` sits in its place: a turn that is asked for becomes what
the environment says, and the policy's action is the answer, so that tokens and log-probabilities are klent's own.
"""

import asyncio
import functools
import inspect
import itertools
import json
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any, get_type_hints

from klent.environments.adapters import library
from klent.environments.environment import Observation, Step
from klent.errors import ConfigError

_ENDLESS = 256  # the tasks that are played of a taskset that has no end


class Verifiers:
    """An environment of verifiers 0.4 or newer with one agent; what it pays is known at its end.

    A row ``{idx: 3}`` names a task by its place in the taskset; where it names none, the seed chooses one. What the
    taskset's hooks do beside the conversation, they do in a temporary folder of this machine.

    Args:
        id: of the taskset, an installed package or one that comes with verifiers.
        env: id of the environment that plays it; empty = the taskset's own, else one turn and its rewards.
        tasks: how many of its first tasks are played; None = all, of an endless taskset 256.
        taskset: further settings of the taskset.

    Raises:
        ConfigError: it needs what is not played here: more than one agent, tools (servers that a program calls over
            MCP), a container, or hooks that read what is sent to a model server.
    """

    def __init__(self, id: str, env: str = "", tasks: int | None = None, **taskset: object) -> None:
        self.world = _world(id, env, tasks, json.dumps(taskset, sort_keys=True))
        self.play: asyncio.Task[float] | None = None

    def reset(self, row: Mapping[str, object], seed: int) -> Observation:
        self.close()
        self.seat = _Seat(self.world)
        self.play = self.world.loop.create_task(self.world.played(self.seat, self.world.task(row, seed)))
        step = self._next()
        if step.done:
            raise ValueError("ended before the policy could say anything")
        return step.observation

    def step(self, action: str) -> Step:
        if not self.seat.answer.done():  # otherwise the library has given the turn up
            self.seat.answer.set_result(action)
        return self._next()

    def close(self) -> None:
        """Leave the episode; its hooks and the folder are let go of."""
        if self.play is not None and not self.play.done():
            self.play.cancel()
            self.world.loop.run_until_complete(asyncio.wait([self.play]))

    def _next(self) -> Step:
        """What is said until the policy is asked again, or what it all paid."""
        assert self.play is not None
        loop, seat = self.world.loop, self.seat
        waiting: list[asyncio.Future[Any]] = [self.play, seat.asked]
        loop.run_until_complete(asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED))
        if self.play.done():
            return Step(reward=self.play.result(), done=True)
        said, seat.asked = seat.asked.result(), loop.create_future()
        return Step(said)


@functools.cache
def _world(id: str, env: str, tasks: int | None, taskset: str) -> "_World":
    return _World(id, env, tasks, json.loads(taskset))


class _World:
    """What the episodes of a process have in common: the environment, its tasks and the loop that all run in."""

    def __init__(self, id: str, env: str, tasks: int | None, taskset: Mapping[str, object]) -> None:
        self.vf = library("verifiers.v1")
        loaders = library("verifiers.v1.utils.loaders")
        self.invoke = library("verifiers.v1.utils.decorators").invoke
        config = loaders.resolve_env_config({"id": env, "taskset": {"id": id, **taskset}})
        self.env = loaders.load_environment(config)
        self.name = f"verifiers environment {self.env.config.env_id}"
        kept = tasks if tasks is not None or self.env.taskset.bounded else _ENDLESS
        self.coming = itertools.islice(iter(self.env.taskset), kept)
        self.tasks: list[Any] = []
        self.endless = None if self.env.taskset.bounded else kept
        self._refuse()
        self.loop = asyncio.new_event_loop()
        self.loop.run_until_complete(self.env.start())

    def _refuse(self) -> None:
        """Refuse what cannot be played here, before anything is."""
        seats: list[str] = []
        self.vf.Agents(self.env.config, lambda name, spec: seats.append(name))
        if len(seats) != 1:
            raise ConfigError(
                f"{self.name} has {len(seats)} agents ({', '.join(seats)}): a policy plays one. Choose another with "
                "`config: {env: NAME}`, or write an environment in which the others are Python"
            )
        taskset, kind = self.env.taskset, type(self.env.taskset).task_type()
        if taskset.toolsets(taskset.config) or kind.toolsets(taskset.config.task):
            raise ConfigError(
                f"{self.name} has tools, which are servers that an agent's program calls over MCP. Give Python "
                "functions to `task: {env: tools}` instead"
            )
        if kind.NEEDS_CONTAINER:
            raise ConfigError(
                f"{self.name} needs a container, and klent would run its hooks on this machine. Choose another "
                "environment"
            )

    def task(self, row: Mapping[str, object], seed: int) -> Any:
        """The task that a start names."""
        if (index := row.get("idx")) is None:
            index = seed % (self.endless or len(self._first(None)))
        if not isinstance(index, int) or not 0 <= index < len(self._first(index + 1)):
            raise ConfigError(
                f"{self.name} has no task {index!r}; `idx` counts its {len(self.tasks)} tasks from 0"
            )
        task = self.tasks[index]
        if task.data.image is not None or task.data.agent_user is not None:
            raise ConfigError(f"{self.name}, task {index}: needs a container; leave it out of `rows`")
        return task

    def _first(self, count: int | None) -> Sequence[Any]:
        """The tasks up to a number of them, loaded as they are asked for."""
        missing = None if count is None else max(0, count - len(self.tasks))
        self.tasks += itertools.islice(self.coming, missing)
        if not self.tasks:
            raise ConfigError(f"{self.name} has no tasks with this `config`; change it")
        return self.tasks

    async def played(self, seat: "_Seat", task: Any) -> float:
        """One episode, in the order of the library's ``Env.run_episode``; its reward."""
        vf, env = self.vf, self.env
        agents = vf.Agents(env.config, lambda name, spec: seat.taken(name, spec))
        episode = vf.Episode(env=vf.EnvInfo(id=env.config.env_id), task=_record(vf, task), traces=seat.traces)
        await env.setup(agents)
        await env.run(task, agents)
        episode.traces = seat.traces
        episode.ok = True
        await env.finalize(task, episode)
        return float(sum(trace.reward for trace in episode.traces))


class _Seat:
    """The policy as the library's ``Agent``.

    Attributes:
        asked: what was said since the last turn, where one is wanted.
        answer: the policy's.
        traces: of finished conversations.
    """

    trainable = True

    def __init__(self, world: _World) -> None:
        self.world = world
        self.asked: asyncio.Future[Observation] = world.loop.create_future()
        self.answer: asyncio.Future[str]
        self.traces: list[Any] = []
        self.begun = False

    def taken(self, name: str, spec: Any) -> "_Seat":
        """Itself, under the name and the settings of the environment's agent."""
        self.name, self.config = name, spec
        return self

    async def ask(self, said: Observation) -> str:
        """The policy's answer."""
        self.answer = self.world.loop.create_future()
        self.asked.set_result(said)
        return await self.answer

    async def run(self, task: Any, **_: object) -> Any:
        """One turn on the task's prompt, and its rewards."""
        async with self.interaction(task) as interaction:
            await interaction.turn()
        return interaction.trace

    @asynccontextmanager
    async def interaction(self, task: Any, **_: object) -> AsyncIterator["_Interaction"]:
        """A conversation about a task; its hooks run before it, its rewards behind it."""
        if self.begun:
            raise RuntimeError(
                "begins a second conversation, and an episode has only one; klent cannot play this environment"
            )
        self.begun = True
        invoke, vf = self.world.invoke, self.world.vf
        interaction = _Interaction(self, task)
        runtimes = library("verifiers.v1.runtimes")
        async with runtimes.provision_runtime(vf.SubprocessConfig(), env=task.runtime_env()) as folder:
            given = {"trace": interaction.trace, "runtime": folder}
            await invoke(task.setup, given)
            yield interaction
            interaction.trace.stop("user_closed")
            await invoke(task.finalize, given)
            await task.score(interaction.trace, folder)
        interaction.trace.ok = True
        self.traces.append(interaction.trace)


class _Interaction:
    """The library's ``Interaction``: what is asked of the policy, and the trace that rewards read."""

    def __init__(self, seat: _Seat, task: Any) -> None:
        vf = seat.world.vf
        self.seat, self.task = seat, task
        self.trace = vf.Trace(
            task=_record(vf, task),
            state=library("verifiers.v1.state").state_cls(type(task))(),
            agent=vf.AgentInfo(config=seat.config, name=seat.name),
        )
        self.stops = [_checked_stop(vf, stop) for stop in task.hooks("stop")]
        if library("verifiers.v1.utils.decorators").discover_decorated(task, "intercept"):
            raise ConfigError(
                f"{seat.world.name} has @intercept, which rewrites requests to a model server, and klent sends none. "
                "Choose another environment"
            )

    async def turn(self, message: Any = None) -> Any:
        """What the policy says to a message, or to the task's prompt; ``terminated`` where the library would end."""
        vf = self.seat.world.vf
        messages = self._messages(message)
        if await self._stopped():
            return vf.Segment(messages=[], terminated=True)
        for one in messages:
            self._add(one)
        action = await self.seat.ask([_as_dict(one) for one in messages])
        reply = vf.AssistantMessage(content=action)
        self._add(reply, sampled=True)
        return vf.Segment(messages=[reply])

    def _messages(self, message: Any) -> list[Any]:
        """What is new to the policy, with the task's prompt at the beginning."""
        vf, data = self.seat.world.vf, self.task.data
        opens = not self.trace.nodes
        if (message is None) != (opens and data.prompt is not None):
            raise ValueError("a task with a prompt opens with turn(), any other turn takes a message")
        said = data.prompt if message is None else message
        said = [vf.UserMessage(content=said)] if isinstance(said, str) else list(said)
        parse = library("verifiers.v1.dialects").parse_message
        said = [parse(one) if isinstance(one, dict) else one for one in said]
        system = [vf.SystemMessage(content=data.system_prompt)] if opens and data.system_prompt else []
        return [*system, *said]

    async def _stopped(self) -> bool:
        most = self.seat.config.max_turns
        if most is not None and self.trace.num_turns >= most:
            self.trace.stop("max_turns")
        for stop in self.stops:
            answer = self.seat.world.invoke(stop, {self.seat.world.vf.Trace: self.trace})
            if await answer if inspect.isawaitable(answer) else answer:
                self.trace.stop(stop.__name__)
        return self.trace.stop_condition is not None

    def _add(self, message: Any, *, sampled: bool = False) -> None:
        nodes = self.trace.nodes
        parent = len(nodes) - 1 if nodes else None
        nodes.append(self.seat.world.vf.MessageNode(parent=parent, message=message, sampled=sampled))


def _record(vf: Any, task: Any) -> Any:
    """A task as a trace records it."""
    return vf.TraceTask(type=type(task).__name__, data=task.data, key=task.key, hash=task.hash)


def _checked_stop(vf: Any, stop: Any) -> Any:
    """A @stop that reads the trace; one that reads a request or a response has none to read here."""
    if {vf.Request, vf.Response} & set(get_type_hints(stop).values()):
        raise ConfigError(
            f"@stop {stop.__name__} reads requests to a model server, and klent sends none; let it read the trace"
        )
    return stop


def _as_dict(message: Any) -> dict[str, str]:
    """A message of text for the chat template."""
    content = message.content
    if isinstance(content, list):
        if any(part.type != "text" for part in content):
            raise ValueError("said a message with an image, and the policy reads only text")
        content = "\n".join(part.text for part in content)
    if getattr(message, "tool_calls", None):
        raise ValueError("said a message with tool calls, which are not played here")
    return {"role": message.role, "content": content or ""}

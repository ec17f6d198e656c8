"""A stand-in for verifiers 0.4: its names and what they do where klent calls them, for machines that lack it.

``tests/environments/test_verifiers.py`` plays the same taskset with it and with the library.
"""

import importlib
import inspect
import sys
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from types import ModuleType, SimpleNamespace
from typing import Any, ClassVar, Generic, TypeVar

T = TypeVar("T")


@dataclass(frozen=True)
class AgentConfig:
    max_turns: int | None = None


@dataclass
class TasksetConfig:
    id: str = ""
    system_prompt: str | None = None
    task: Any = None

    def __init__(self, **given: Any) -> None:
        for name in [name for kind in type(self).__mro__ for name in getattr(kind, "__annotations__", {})]:
            setattr(self, name, given.pop(name, getattr(type(self), name, None)))
        if given:
            raise ValueError(f"no setting {given}")


@dataclass
class EnvConfig:
    id: str = ""
    taskset: Any = None

    @property
    def env_id(self) -> str:
        return f"{self.id}+{self.taskset.id}" if self.id else self.taskset.id


class TaskData:
    prompt: Any = None
    system_prompt: Any = None
    image = agent_user = None

    def __init__(self, **given: Any) -> None:
        vars(self).update(given)


class State:
    pass


class Task(Generic[T]):
    NEEDS_CONTAINER: ClassVar[bool] = False
    key = hash = "hash"

    def __class_getitem__(cls, _: Any) -> type:
        return cls

    def __init__(self, data: TaskData, config: Any = None) -> None:
        self.data = data

    @classmethod
    def toolsets(cls, config: Any) -> list[Any]:
        return []

    def hooks(self, kind: str) -> list[Any]:
        return discover_decorated(self, kind)

    def runtime_env(self) -> dict[str, str]:
        return {}

    async def setup(self, trace: Any, runtime: Any) -> None:
        pass

    finalize = setup

    async def score(self, trace: Any, runtime: Any = None) -> None:
        for fn in self.hooks("reward"):
            value = await invoke(fn, {"task": self.data, "trace": trace, "runtime": runtime})
            trace.record_reward(fn.__name__, value, 1.0)


class Taskset(Generic[T]):
    INFINITE = False

    def __class_getitem__(cls, kinds: Any) -> type:
        return type(cls.__name__, (cls,), {"kinds": kinds})

    def __init__(self, config: Any) -> None:
        self.config = config

    @property
    def bounded(self) -> bool:
        return not self.INFINITE

    def __iter__(self) -> Any:
        return iter(self.load())

    @classmethod
    def task_type(cls) -> Any:
        return cls.kinds[0]

    @classmethod
    def toolsets(cls, config: Any) -> list[Any]:
        return []


class Env:
    def __class_getitem__(cls, kind: Any) -> type:
        return type(cls.__name__, (cls,), {"kind": kind})

    def __init__(self, config: Any, taskset: Any) -> None:
        self.config, self.taskset = config, taskset

    async def setup(self, agents: Any) -> None:
        pass

    async def finalize(self, task: Any, episode: Any) -> None:
        pass

    async def start(self) -> None:
        pass


@dataclass
class SingleConfig(EnvConfig):
    agent: AgentConfig = AgentConfig()


class SingleAgentEnv(Env[SingleConfig]):
    async def run(self, task: Any, agents: Any) -> None:
        await agents.agent.run(task)


class Agents:
    def __init__(self, config: Any, make: Any) -> None:
        self.named = {
            name: make(name, value)
            for name in dir(config)
            if isinstance(value := getattr(config, name), AgentConfig)
        }

    def __getattr__(self, name: str) -> Any:
        return self.named[name]


@dataclass
class Trace:
    task: Any
    state: Any
    agent: Any
    nodes: list[Any] = field(default_factory=list)
    rewards: dict[str, float] = field(default_factory=dict)
    stop_condition: str | None = None
    ok: bool = False

    @property
    def reward(self) -> float:
        return sum(self.rewards.values())

    @property
    def num_turns(self) -> int:
        return sum(node.sampled for node in self.nodes)

    @property
    def last_reply(self) -> str:
        said = [node.message.content.strip() for node in self.nodes if node.sampled]
        return said[-1] if said else ""

    def record_reward(self, name: str, value: float, weight: float = 1.0) -> None:
        self.rewards[name] = weight * value

    def stop(self, condition: str) -> None:
        self.stop_condition = self.stop_condition or condition


@dataclass
class Segment:
    messages: list[Any]
    terminated: bool = False

    @property
    def last_reply(self) -> str:
        return self.messages[-1].content.strip() if self.messages else ""


def message(role: str) -> Any:
    return lambda content: SimpleNamespace(role=role, content=content)


def mark(kind: str) -> Any:
    def decorate(fn: T) -> T:
        setattr(fn, kind, True)
        return fn

    return decorate


def discover_decorated(task: Any, kind: str) -> list[Any]:
    return [getattr(task, name) for name in dir(type(task)) if hasattr(getattr(type(task), name), kind)]


def invoke(fn: Any, given: dict[Any, Any]) -> Any:
    hints = {name: one.annotation for name, one in inspect.signature(fn).parameters.items()}
    found = {name: given[name] for name in hints if name in given}
    return fn(**found, **{name: given[kind] for name, kind in hints.items() if kind in given})


def exported(module: Any, base: type) -> list[Any]:
    found = [getattr(module, name) for name in module.__all__]
    return [one for one in found if isinstance(one, type) and issubclass(one, base)]


def resolve_env_config(data: dict[str, Any]) -> Any:
    module = importlib.import_module(data["taskset"]["id"])
    (taskset,) = exported(module, Taskset)
    envs = [] if data["id"] == "single_agent" else exported(module, Env)
    kind = envs[0].kind if envs else SingleConfig
    return kind(id=data["id"], taskset=taskset.kinds[1](**data["taskset"]))


def load_environment(config: Any) -> Any:
    module = importlib.import_module(config.taskset.id)
    (taskset,) = exported(module, Taskset)
    envs = [] if config.id == "single_agent" else exported(module, Env)
    return (envs[0] if envs else SingleAgentEnv)(config, taskset(config.taskset))


@asynccontextmanager
async def provision_runtime(config: Any, env: Any = None) -> Any:
    yield "folder"


def install(monkeypatch: Any) -> None:
    """Put it in the library's place."""
    record = SimpleNamespace
    names = {
        **{kind.__name__: kind for kind in (AgentConfig, TasksetConfig, EnvConfig, TaskData, State, Task)},
        **{kind.__name__: kind for kind in (Taskset, Env, Agents, Trace, Segment)},
        **dict.fromkeys(("TraceTask", "AgentInfo", "MessageNode", "Episode", "EnvInfo"), record),
        **{"AssistantMessage": message("assistant"), "UserMessage": message("user")},
        **{"SystemMessage": message("system"), "SubprocessConfig": record, "TaskConfig": None},
        **{"Request": type("Request", (), {}), "Response": type("Response", (), {})},
        **{kind: mark(kind) for kind in ("reward", "stop", "intercept")},
    }
    parts = {
        "": {},
        ".v1": names,
        ".v1.utils": {},
        ".v1.utils.loaders": {
            "resolve_env_config": resolve_env_config,
            "load_environment": load_environment,
        },
        ".v1.utils.decorators": {"invoke": invoke, "discover_decorated": discover_decorated},
        ".v1.runtimes": {"provision_runtime": provision_runtime},
        ".v1.state": {"state_cls": lambda kind: State},
        ".v1.dialects": {"parse_message": lambda given: message(given["role"])(given["content"])},
    }
    for name, content in parts.items():
        module = ModuleType(f"verifiers{name}")
        vars(module).update(content)
        module.__path__ = []
        monkeypatch.setitem(sys.modules, module.__name__, module)
        parent, _, own = module.__name__.rpartition(".")
        if parent:
            setattr(sys.modules[parent], own, module)

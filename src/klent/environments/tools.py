"""Python functions as tools: the policy calls them through its chat template, and answers when it is done."""

import inspect
import json
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from klent.environments.environment import Observation, Step
from klent.errors import ConfigError
from klent.kit.names import nearest
from klent.kit.own_code import load

_CALL = re.compile(r"<tool_call>\s*(.*?)\s*(?:</tool_call>|$)", re.DOTALL)
_TYPES = {int: "integer", float: "number", str: "string", bool: "boolean", list: "array", dict: "object"}


class Tools:
    """A row's `prompt`, and tools to answer it with; the first turn that calls none is the answer.

    Calls are read as Qwen, SmolLM3 and Hermes write them, ``<tool_call>{"name": ..., "arguments": {...}}
    </tool_call>``, or as Llama does, a turn that is one JSON object. A call that fails is told to the policy,
    which may try again; one that hangs ends the episode at the environment's time limit. Nothing is paid: the
    recipe's ``reward`` scores the answer, with the row's columns.

    Args:
        tools: functions, each ``path/to/file.py:function`` or ``package.module:function``. Annotations and the
            docstring's first paragraph are what the model is told of them.
        longest: of a tool's answer, characters; the rest is cut.
    """

    def __init__(self, tools: Sequence[str], longest: int = 4000) -> None:
        functions = [_load(name) for name in tools]
        self.tools = {function.__name__: function for function in functions}
        self.template = {"tools": [schema_of(function) for function in functions]}
        self.longest = longest

    def reset(self, row: Mapping[str, object], seed: int) -> Observation:
        """The row's prompt as messages."""
        prompt = row.get("prompt")
        if isinstance(prompt, str):
            return [{"role": "user", "content": prompt}]
        if not isinstance(prompt, list):
            raise ConfigError("tools need a column `prompt`: name a file with one in `rows`")
        return prompt

    def step(self, action: str) -> Step:
        """What the called tools return, each as a message of role ``tool``; without a call, the end."""
        calls = read_calls(action)
        if not calls:
            return Step(done=True)
        return Step([{"role": "tool", "content": self._call(call)} for call in calls])

    def _call(self, call: object) -> str:
        if not isinstance(call, dict) or not isinstance(call.get("name"), str):
            return 'error: a call is {"name": ..., "arguments": {...}}'
        name, arguments = call["name"], call.get("arguments", call.get("parameters", {}))
        if name not in self.tools:
            return f"error: there is no tool {name}{nearest(name, self.tools)}; there are {', '.join(self.tools)}"
        if not isinstance(arguments, dict):
            return "error: the arguments of a call are an object"
        try:
            returned = self.tools[name](**arguments)
            text = returned if isinstance(returned, str) else json.dumps(returned, default=str)
        except Exception as error:  # the policy's mistake, or the tool's: the policy is told
            text = f"error: {type(error).__name__}: {error}"
        return text if len(text) <= self.longest else f"{text[: self.longest]} [cut]"


def read_calls(action: str) -> list[object]:
    """The tool calls of a turn; one that is no JSON is None.

    >>> read_calls('so <tool_call>{"name": "add", "arguments": {"a": 1}}</tool_call>')
    [{'name': 'add', 'arguments': {'a': 1}}]
    >>> read_calls('{"name": "add", "parameters": {}}'), read_calls("It is 4."), read_calls("<tool_call>add")
    ([{'name': 'add', 'parameters': {}}], [], [None])
    """
    found = _CALL.findall(action)
    if (
        not found
        and action.strip().startswith("{")
        and isinstance(call := _json(action), dict)
        and "name" in call
    ):
        return [call]
    return [_json(text) for text in found]


def schema_of(function: Callable[..., object]) -> dict[str, object]:
    """What a chat template is told of a function.

    >>> def add(a: int, b: int = 0) -> int:
    ...     '''Add two numbers.'''
    >>> schema_of(add)["function"]["parameters"]["required"]
    ['a']
    """
    parameters = inspect.signature(function, eval_str=True).parameters
    described = (inspect.getdoc(function) or "").split("\n\n")[0].replace("\n", " ")
    return {
        "type": "function",
        "function": {
            "name": function.__name__,
            "description": described,
            "parameters": {
                "type": "object",
                "properties": {
                    name: {"type": _TYPES.get(parameter.annotation, "string")}
                    for name, parameter in parameters.items()
                },
                "required": [name for name, p in parameters.items() if p.default is p.empty],
            },
        },
    }


def _json(text: str) -> object:
    try:
        value: object = json.loads(text)
    except ValueError:
        return None
    return value


def _load(name: str) -> Callable[..., object]:
    source, _, attribute = name.rpartition(":")
    path = str(Path(source).expanduser().resolve()) if source.endswith(".py") else source
    try:
        function = load(f"{path}:{attribute}")
    except ConfigError as error:
        raise ConfigError(f"tool {name}: {error}") from error
    if not inspect.isfunction(function):
        raise ConfigError(f"tool {name}: {attribute!r} is of type {type(function).__name__}, not a function")
    return function

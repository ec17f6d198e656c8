"""What a worker may answer: whatever else it writes is no reply."""

import json
from typing import cast

from klent.tasks.worker import Reply


def read_reply(line: bytes, id: int) -> Reply:
    """A line from a worker as its reply to request ``id``.

    Raises:
        ValueError: it is anything else.
        RecursionError: it is nested too deeply.
    """
    reply = json.loads(line)
    if not isinstance(reply, dict) or type(reply.get("id")) is not int or reply["id"] != id:
        raise ValueError("an answer to another request")
    kinds = reply.keys() - {"id"}
    if kinds == {"parameters"}:
        _check_fields(reply["parameters"], required=list, named=list)
        if not all(isinstance(name, str) for listed in reply["parameters"].values() for name in listed):
            raise ValueError("a parameter without a name")
    elif kinds == {"error"}:
        _check_fields(reply["error"], kind=str, text=str, file=str, line=int)
    elif kinds == {"value", "metrics"}:
        _check_fields({"metrics": reply["metrics"]}, metrics=dict)
        if not all(isinstance(value, float) for value in reply["metrics"].values()):
            raise ValueError("a metric that is no number")
    else:
        raise ValueError("not the keys of a reply")
    return cast(Reply, reply)


def _check_fields(value: object, **types: type) -> None:
    """A mapping has exactly these keys, each of its type."""
    if not isinstance(value, dict) or value.keys() != types.keys():
        raise ValueError("not the keys of a reply")
    if not all(isinstance(value[name], kind) for name, kind in types.items()):
        raise ValueError("a field of another type")

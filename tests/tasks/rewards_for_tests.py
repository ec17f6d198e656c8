"""Rewards with every habit that a reward can have. Run in worker processes; see test_scorer.py."""

import asyncio
import ctypes
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

NOT_A_FUNCTION = 3


def length(completions, **kwargs):
    return [float(len(text)) for text in completions]


def seen(prompts, completions, answer, **kwargs):
    """Writes down what it was given."""
    import json

    Path(kwargs["where"][0]).write_text(json.dumps([prompts, completions, answer, sorted(kwargs)]))
    return [1] * len(prompts)


def no_kwargs(completions, answer):
    return [text == right for text, right in zip(completions, answer, strict=True)]


def trl_extras(completions, log_metric, trainer_state="absent", log_extra=None, **kwargs):
    log_metric("name", 1.0)
    assert trainer_state == "absent"
    assert log_extra is None  # its own default
    return [1.0] * len(completions)


def tokens(completions, completion_ids, **kwargs):
    return [float(sum(ids)) for ids in completion_ids]


def stateful(completions, trainer_state, **kwargs):
    return [float(trainer_state.global_step)] * len(completions)


def of_text(completions, answer, **kwargs):
    return [float(right in text.split()) for text, right in zip(completions, answer, strict=True)]


def of_messages(completions, answer, **kwargs):
    return [float(right in c[0]["content"]) for c, right in zip(completions, answer, strict=True)]


def silently_of_text(completions, answer, **kwargs):
    return [float(right in text) for text, right in zip(completions, answer, strict=True)]


def one_number(completions, **kwargs):
    return 1.0


def words(completions, **kwargs):
    return ["good"] * len(completions)


def misspelt(completions, **kwargs):
    return [lenght(text) for text in completions]  # noqa: F821


def of_json(completions, **kwargs):
    import json

    return [float(json.loads(text)["score"]) for text in completions]


def strict(completions, **kwargs):
    raise ValueError("no tag")


def of_numbers(completions, **kwargs):
    return [float(text) for text in completions]


def one_by_one(completions, **kwargs):
    (only,) = completions
    return [float(len(only))]


def silent(completions, **kwargs):
    return [None] * len(completions)


async def later(completions, **kwargs):
    await asyncio.sleep(0.001)
    return [2.0] * len(completions)


def against_the_group(completions, **kwargs):
    best = max(completions, key=len)
    return [float(text == best) for text in completions]


def misbehave(completions, **kwargs):
    """Does what a completion says, or returns its length."""
    return [_obey(text) for text in completions]


def _obey(text: str) -> Any:
    if text == "raise":
        raise ValueError("not like that")
    if text == "hang":
        time.sleep(60)
    if text == "hang in C":
        import re

        re.match(r"(a+)+$", "a" * 40 + "b")
    if text == "hang stubbornly":
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)
        while True:
            with suppress(BaseException):
                time.sleep(60)
    if text == "exit":
        sys.exit("bye")
    if text == "os._exit":
        os._exit(3)
    if text == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if text == "segfault":
        ctypes.string_at(0)
    if text == "interrupt":
        raise KeyboardInterrupt
    if text == "recurse":
        return _obey(text)
    if text == "print":
        print('{"value": [9.0]}')
        print("to the error stream", file=sys.stderr)
        os.write(1, b'{"value": [9.0]}\n')
    if text == "vandal":
        for number in range(3, 30):
            with suppress(OSError):
                os.write(number, b"junk\n")
    if text == "read":
        assert sys.stdin.read() == ""
    if text == "close":
        sys.stdout.close()
        with suppress(OSError):  # the second time
            os.close(1)
    values = {
        "None": None,
        "nan": float("nan"),
        "inf": float("inf"),
        "text": "1.0",
        "list": [1],
        "huge": 10**400,
    }
    return values.get(text, len(text))


def wrong_length(completions, **kwargs):
    return [1.0] * (len(completions) - 1) if len(completions) > 1 else [1.0, 2.0]


def not_a_list(completions, **kwargs):
    return 1.0


def a_generator(completions, **kwargs):
    return (1.0 for _ in completions)


def batch_only(completions, **kwargs):
    assert len(completions) > 1
    return [1.0] * len(completions)


def alone_only(completions, **kwargs):
    if len(completions) > 1:
        raise RuntimeError("one at a time, please")
    return [1.0]


def like_numpy(completions, **kwargs):
    import numpy

    return numpy.arange(len(completions), dtype=numpy.float32)


def numpy_items(completions, **kwargs):
    import numpy

    return [numpy.float32(0.5), numpy.bool_(True), numpy.int64(3)][: len(completions)]


def environment(completions, **kwargs):
    assert os.environ["OMP_NUM_THREADS"] == "1"
    assert "torch" not in sys.modules
    assert "transformers" not in sys.modules
    assert "pydantic" not in sys.modules
    return [float(os.getpid())] * len(completions)


def spawn_and_hang(completions, where, **kwargs):
    deaf = (
        "import signal; signal.signal(signal.SIGIO, signal.SIG_IGN); "
        if completions[0] == "deaf child"
        else ""
    )
    child = subprocess.Popen([sys.executable, "-c", f"{deaf}import time; time.sleep(120)"])
    Path(where[0]).write_text(f"{os.getpid()} {child.pid}")
    if completions[0] == "hang in C":
        _obey("hang in C")
    time.sleep(120)


def meet_first(completions, where, **kwargs):
    return _meet(Path(where[0]), "first", "second")


def meet_second(completions, where, **kwargs):
    return _meet(Path(where[0]), "second", "first")


def _meet(folder: Path, own: str, other: str) -> list[float]:
    (folder / own).touch()
    while not (folder / other).exists():
        time.sleep(0.01)
    return [1.0]


class Callable:
    def __call__(self, completions, **kwargs):
        return [7.0] * len(completions)


an_object = Callable()

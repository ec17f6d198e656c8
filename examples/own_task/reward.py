"""Two rewards with TRL's signature: they get the whole batch and return one number, or None, per completion.

Every column of the data is passed by its name as a list, here `answer`. A completion is text where its prompt
is text, and a list with one message where its prompt is a list of messages.
"""

import re


def correct(completions, answer, **kwargs):
    """1 where the first number in the completion is the right one."""
    scores = []
    for completion, right in zip(completions, answer, strict=True):
        number = re.search(r"\d+", _text(completion))
        scores.append(float(number is not None and number.group() == right))
    return scores


def brief(completions, **kwargs):
    """1 for a single word, less for every word more, and never below 0."""
    return [max(0.0, 1.0 - 0.1 * (len(_text(completion).split()) - 1)) for completion in completions]


def _text(completion):
    return completion if isinstance(completion, str) else completion[0]["content"]

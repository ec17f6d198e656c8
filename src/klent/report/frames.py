"""Images of samples.jsonl: the last one of an episode, and those on the way to it."""

from collections.abc import Iterator

from klent.kit.tables import finite


def vector_of(values: object) -> list[float]:
    """The numbers of a list; what is no finite number is left out."""
    some = values if isinstance(values, list) else []
    return [value for one in some if (value := finite(one)) is not None]


def frames_of(film: object, count: int) -> Iterator[tuple[int, list[float]]]:
    """(place, image) of each frame, places rising and below ``count``; nothing from the first that is damaged.

    >>> list(frames_of([[0, [0.5]], [2, [1.0]], [1, [0.0]]], 3))
    [(0, [0.5]), (2, [1.0])]
    """
    last = -1
    for frame in film if isinstance(film, list) else []:
        place, values = frame if isinstance(frame, list) and len(frame) == 2 else (None, None)
        if not isinstance(place, int) or not last < place < count:
            return
        yield place, vector_of(values)
        last = place

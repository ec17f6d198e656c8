"""Names of the arguments of a loss: klent's streams, and the names that others have for them."""

import re

from klent.audit.measures import TO_REFERENCE
from klent.streams.registry import REGISTRY

_NUMBERS = ("logp", "logp_old", "logp_gen", "logp_ref", "advantage", "entropy", "distance", "kl")
#: streams that the auditor supplies to a loss; ``mask`` is bool, the others are float ``[B, T]``. Beside those of
#: the registry there are other divergences than ``kl``, for a loss that wants one in its place
STREAMS: tuple[str, ...] = (
    *(REGISTRY[name].name for name in _NUMBERS),
    *(name for name in TO_REFERENCE if name != "kl"),
    REGISTRY["mask"].name,
)
#: streams that four required arguments with other names are read as, in this order
POSITIONAL = ("logp", "logp_old", "logp_ref", "mask")
#: streams with respect to which a loss is differentiated
TRAINED = ("logp", "entropy", *TO_REFERENCE)
#: streams that only the reference makes; a loss that takes one of them may follow a divergence from it
OF_REFERENCE = ("logp_ref", *TO_REFERENCE)
#: other names of a quantity, as one word of an argument's name
QUANTITIES: dict[str, tuple[str, ...]] = {
    "logp": ("logp", "logps", "logprob", "logprobs", "log_prob", "log_probs", "log_p", "log_ps"),
    "advantage": ("advantage", "advantages", "adv", "advs"),
    "entropy": ("entropy", "entropies"),
    "mask": ("mask", "masks"),
}
#: words that say of a log-probability which distribution it is of; any other word makes the name unknown
WHOSE: dict[str, tuple[str, ...]] = {
    "logp_old": ("old", "behavior", "behaviour"),
    "logp_gen": ("gen", "sampling", "sampler", "rollout", "inference", "vllm"),
    "logp_ref": ("ref", "reference", "base"),
}
#: words that change nothing: of the policy as it is, one number a token
PLAIN = (
    "policy",
    "new",
    "cur",
    "curr",
    "current",
    "actor",
    "model",
    "per",
    "token",
    "tokens",
    "action",
    "pi",
)
#: words before ``mask`` for what is trained on; a mask of anything else (attention, padding) is another one
TRAINED_ON = ("completion", "response", "action", "loss", "token")
#: stream -> parts of a name that suggest it; the first stream that matches is suggested
HINTS: dict[str, tuple[str, ...]] = {
    "logp_ref": ("ref",),
    "logp_old": ("old", "behav", "sampl", "gen"),
    "mask": ("mask",),
    "advantage": ("adv",),
    "entropy": ("entrop",),
    "logp": ("log", "prob", "lp"),
}


def stream_of(parameter: str) -> str | None:
    """The stream that a parameter takes by its name: klent's own, or one that TRL, verl or people use.

    >>> stream_of("logp"), stream_of("old_log_prob"), stream_of("per_token_logps"), stream_of("logprobs_ref")
    ('logp', 'logp_old', 'logp', 'logp_ref')
    >>> stream_of("coef"), stream_of("chosen_logps"), stream_of("attention_mask"), stream_of("entropy_coef")
    (None, None, None, None)
    """
    if parameter in STREAMS:
        return parameter
    for quantity, names in QUANTITIES.items():
        for name in sorted(names, key=len, reverse=True):
            found = re.fullmatch(rf"(?:(?P<before>\w+)_)?{name}(?:_(?P<after>\w+))?", parameter.lower())
            if found:
                words = "_".join(part for part in found.groups() if part)
                return _which(quantity, words.split("_") if words else [])
    return None


def is_alias(parameter: str | int) -> bool:
    """Whether a parameter takes a stream under a name that is not klent's."""
    return isinstance(parameter, str) and parameter not in STREAMS and stream_of(parameter) is not None


def _which(quantity: str, words: list[str]) -> str | None:
    """The stream of a quantity that the other words of its name leave."""
    if quantity == "mask":
        return quantity if all(word in TRAINED_ON for word in words) else None
    telling = [word for word in words if word not in PLAIN]
    if not telling:
        return quantity
    whose = {stream for stream, known in WHOSE.items() for word in telling if word in known}
    known = all(any(word in listed for listed in WHOSE.values()) for word in telling)
    return whose.pop() if quantity == "logp" and known and len(whose) == 1 else None


def suggested(parameter: str) -> str | None:
    """The stream that a name resembles, or None.

    >>> suggested("old"), suggested("my_ref_logps"), suggested("values")
    ('logp_old', 'logp_ref', None)
    """
    return next((stream for stream, parts in HINTS.items() if any(part in parameter for part in parts)), None)


def readable_by_position(parameters: list[str]) -> bool:
    """Whether four names can be ``POSITIONAL``: none names a stream, or none contradicts the order."""
    if all(stream_of(name) is None for name in parameters):
        return True
    return all(
        stream_of(name) == expected
        or (stream_of(name) is None and any(part in name for part in HINTS[expected]))
        for name, expected in zip(parameters, POSITIONAL, strict=True)
    )

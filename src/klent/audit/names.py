"""Names of the arguments of a loss: klent's streams, and the names that TRL and verl use for them."""

from klent.streams.registry import REGISTRY

#: streams that the auditor supplies to a loss; ``mask`` is bool, the others are float ``[B, T]``
STREAMS: tuple[str, ...] = tuple(
    REGISTRY[name].name
    for name in ("logp", "logp_old", "logp_gen", "logp_ref", "advantage", "entropy", "mask")
)
#: streams that four required arguments with other names are read as, in this order
POSITIONAL = ("logp", "logp_old", "logp_ref", "mask")
#: streams with respect to which a loss is differentiated
TRAINED = ("logp", "entropy")
#: name in TRL, verl or OpenRLHF -> stream
ALIASES: dict[str, str] = {
    "per_token_logps": "logp",
    "log_prob": "logp",
    "log_probs": "logp",
    "logprob": "logp",
    "logprobs": "logp",
    "old_per_token_logps": "logp_old",
    "old_log_prob": "logp_old",
    "old_log_probs": "logp_old",
    "old_logprob": "logp_old",
    "old_logprobs": "logp_old",
    "sampling_per_token_logps": "logp_gen",
    "rollout_log_prob": "logp_gen",
    "rollout_log_probs": "logp_gen",
    "ref_per_token_logps": "logp_ref",
    "ref_log_prob": "logp_ref",
    "ref_log_probs": "logp_ref",
    "ref_logprob": "logp_ref",
    "ref_logprobs": "logp_ref",
    "advantages": "advantage",
    "entropies": "entropy",
    "completion_mask": "mask",
    "response_mask": "mask",
    "action_mask": "mask",
    "loss_mask": "mask",
}
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
    """The stream that a parameter takes by its name.

    >>> stream_of("logp"), stream_of("old_log_prob"), stream_of("coef")
    ('logp', 'logp_old', None)
    """
    return parameter if parameter in STREAMS else ALIASES.get(parameter)


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

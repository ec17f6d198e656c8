"""The reference of a run: asked anew for what is sampled, measured once for what is replayed."""

from collections.abc import Callable
from importlib.metadata import version

from klent.models.load import LoadedModel
from klent.models.pull import cache_folder
from klent.policies.causal_lm.policy import CausalPolicy
from klent.runs.code import model_folder
from klent.training.kept_reference import FORMAT, KeptReference, identity
from klent.training.reference import Measure, MeasuredReference, Reference

Compared = tuple[CausalPolicy | None, Reference | None]


def build_compared(
    *,
    name: str,
    loaded: LoadedModel,
    replayed: bool,
    build: Callable[[], CausalPolicy],
    measure: Measure,
    wanted: tuple[bool, bool],
    note: Callable[[str], None],
) -> Compared:
    """The reference policy, where it is loaded now, and what gives a step its ``logp_ref``.

    Where the same completions come again, each is measured once and kept in the cache folder, and the policy is
    loaded when the first is missing there.

    Args:
        name: of the reference model.
        loaded: the policy's model, whose precision and attention the reference shares.
        replayed: whether completions come again.
        build: makes the reference policy.
        measure: numbers of a batch under a policy.
        wanted: whether a term reads ``logp_ref``, and whether something compares whole distributions.
        note: told what a user should know.
    """
    reads_logp, whole = wanted
    if not (reads_logp or whole):
        return None, None
    folder = model_folder(name) if reads_logp and replayed and not whole else None
    if folder is not None:
        cache = cache_folder() / "reference" / identity(folder, **_settings(loaded))
        return None, KeptReference(cache, lambda: MeasuredReference(build(), measure), note)
    reference = build()
    return reference, MeasuredReference(reference, measure) if reads_logp else None


def _settings(loaded: LoadedModel) -> dict[str, object]:
    """What log-probabilities depend on beside the weights."""
    model = loaded.model
    return {
        "format": FORMAT,
        "versions": {name: version(name) for name in ("klent", "torch", "transformers")},
        "dtype": str(model.dtype),
        "device": model.device.type,
        "attention": loaded.attention,
    }

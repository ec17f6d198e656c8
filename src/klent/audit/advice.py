"""What to write instead, in plain words, for a loss that does not follow what it looks like."""

from klent.audit.match import Match
from klent.audit.reduction import Reduction

PER_TOKEN = "kl_in_loss(..., logp_old=logp_old)"
SEQUENCES = "sequence_kl_loss(logp, kl, mask, logp_gen=logp_gen)"
#: what a penalty of the reference follows on-policy -> how klent writes it so that it is followed off-policy too
INSTEAD = {
    "reverse_kl_token": f"token by token write {PER_TOKEN}",
    "forward_kl_token": 'token by token write kl_in_loss(..., divergence="forward", logp_old=logp_old)',
    "reverse_kl": f"write {SEQUENCES}",
    "entropy": "write entropy_loss(entropy, mask), which takes the whole vocabulary's entropy",
    "entropy_sequence": "write sequence_entropy_loss(logp, entropy, mask, logp_gen=logp_gen)",
}


def advice(
    on_policy: Match, off_policy: Match, reduction: Reduction | None, *, penalises: bool
) -> tuple[str, ...]:
    """Sentences that say what to write instead; empty where nothing is wrong.

    Args:
        on_policy: what the loss matches on samples of the policy itself.
        off_policy: what it matches on those of another policy.
        reduction: what its reduction changes.
        penalises: whether it takes a number of the reference, and no reward.
    """
    said = []
    follows = set(on_policy.coefficients)
    if penalises and on_policy.follows == "zero":
        said.append(
            f"As a penalty it does nothing on-policy: for the reverse KL {INSTEAD['reverse_kl_token']}, for that of "
            f"sequences {SEQUENCES}."
        )
    elif penalises and on_policy.follows == "unknown" and not _only_by_length(on_policy):
        said.append(
            f"It follows no divergence: for the reverse KL {INSTEAD['reverse_kl_token']}, for that of sequences "
            f"{SEQUENCES}."
        )
    elif follows == {"forward_kl_token"}:
        off = " and no divergence at all off-policy" if off_policy.follows == "unknown" else ""
        said.append(
            f"It follows the forward KL{off}. For the reverse KL write {PER_TOKEN}, for that of sequences "
            f"{SEQUENCES}; for the forward KL from any sampler: {INSTEAD['forward_kl_token']}."
        )
    elif off_policy.follows == "unknown" and len(follows) == 1 and follows <= set(INSTEAD):
        (name,) = follows
        said.append(f"Off-policy it follows nothing: {INSTEAD[name]}.")
    elif off_policy.coefficients and set(off_policy.coefficients) <= {"reverse_kl_token"}:
        said.append(f"It is exact token by token; for the KL of whole sequences write {SEQUENCES}.")
    if reduction is not None and reduction.over == "sequences" and max(reduction.unexplained.values()) > 1e-6:
        said.append('Average with reduce.over: constant (reduce_tokens(..., over="constant")).')
    return tuple(said)


def _only_by_length(match: Match) -> bool:
    """Whether a statement fails only where completions are not equally long: then the average is to blame."""
    return match.equal_lengths.follows != "unknown"

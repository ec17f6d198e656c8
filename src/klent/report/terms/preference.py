"""Metrics of pairs: which of two answers scores higher, and where each of them goes."""

from klent.report.terms.term import Term

PREFERENCE: dict[str, Term] = {
    "preference/accuracy": Term(
        "fraction",
        "Pairs whose better answer has the higher score, a tie counting half: the log-probability of the answer, "
        "less the reference's where the loss reads it, per token where it reads lengths; or a reward model's score.",
        "Before any training with a reference every pair is a tie: 0.5. On training pairs it says little; compare "
        "with eval.jsonl.",
    ),
    "preference/margin": Term(
        "nats",
        "Mean score of the better answers less that of the worse ones.",
        "Where labels never disagree DPO lets it grow without end; ipo and label_noise bound it.",
    ),
    "preference/chosen": Term(
        "nats",
        "Mean score of the better answers.",
        "With a reference 0 at the start. If it falls while the margin grows, the answers lose probability to texts "
        "that are in no pair (likelihood displacement).",
    ),
    "preference/rejected": Term("nats", "Mean score of the worse answers.", "It falls as training goes on."),
    "preference/tied": Term(
        "fraction",
        "Prompts whose sampled answers all have the same reward, so that there is no pair (rollout.pairs).",
        "Near 1 little is learned: raise group_size, or take harder or easier prompts.",
    ),
}
"""Metrics of pairs -> Term."""

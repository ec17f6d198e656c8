"""Metrics of pairs: which of two answers scores higher, and where each of them goes."""

from klent.report.terms.term import Term

PREFERENCE: dict[str, Term] = {
    "preference/accuracy": Term(
        "fraction",
        "Pairs whose better answer has the higher score; a tie counts half. The score is a reward model's, or the "
        "answer's log-probability, minus the reference's (per token) if the loss uses a reference (lengths).",
        "With a reference every pair is a tie before training: 0.5. On training pairs it says little; see the value "
        "in eval.jsonl.",
    ),
    "preference/margin": Term(
        "nats",
        "Mean score of the better answers minus that of the worse ones.",
        "If labels never contradict each other, DPO lets it grow without end; ipo and label_noise bound it.",
    ),
    "preference/chosen": Term(
        "nats",
        "Mean score of the better answers.",
        "With a reference, 0 at the start. If it falls while the margin grows, both answers lose probability to "
        "texts that are in no pair (likelihood displacement).",
    ),
    "preference/rejected": Term("nats", "Mean score of the worse answers.", "It falls as training goes on."),
    "preference/tied": Term(
        "fraction",
        "Share of prompts whose sampled answers all have the same reward, so that they give no pair (rollout.pairs).",
        "Near 1 little is learnt: raise group_size, or use harder or easier prompts.",
    ),
}
"""Metrics of pairs -> Term."""

"""Metrics of a critic, and of the coefficient that holds a KL."""

from klent.report.terms.term import Term

CRITIC: dict[str, Term] = {
    "value/explained": Term(
        "",
        "Explained variance: 1 - Var(G - V) / Var(G) over the step's tokens, of the values V before the update and "
        "the returns G that they are trained on.",
        "0 is a constant, 1 is perfect; below 0 the values are worse than none. With lam below 1 the returns are "
        "made of the values in part, which flatters them.",
    ),
    "value/mean": Term(
        "reward",
        "Mean of the critic's values over the step's tokens, before the update.",
        "It should follow reward/mean, less what tokens pay for KL.",
    ),
    "value/error": Term(
        "reward squared",
        "Mean squared error of the values against the returns, as the update's passes see it.",
        "It should fall below the variance of the returns, and stays above 0 where the same prefix ends both ways.",
    ),
    "value/clipped": Term(
        "fraction",
        "Share of tokens whose value had moved too far to be trained on (loss.value.clip).",
        "Near 1 the clip, in units of reward, is small against the rewards: the critic hardly learns.",
    ),
    "value/gradient_share": Term(
        "fraction",
        "Of the gradient that enters layers shared with the policy the critic's part: its norm over the sum of both.",
        "Near 1 the critic moves the layers and the policy follows: lower loss.value.coef.",
    ),
    "kl/coef": Term(
        "reward per nat",
        "Coefficient of the KL to the reference in this step, as adaptive_kl has set it.",
        "It rises while kl/completion is above its target, and falls below it.",
    ),
    "kl/completion": Term(
        "nats per completion",
        "What adaptive_kl steers: KL(policy || reference) of a completion, exact over each vocabulary where a term "
        "computes that, else the sum of log-ratios of the sampled tokens (k1).",
        "Compare adaptive_kl.target. The sum of log-ratios is unbiased, noisy, and below 0 in some steps.",
    ),
}

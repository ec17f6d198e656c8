"""Metrics of a critic, and of the coefficient that holds a KL."""

from klent.report.terms.term import Term

CRITIC: dict[str, Term] = {
    "value/explained": Term(
        "",
        "Explained variance 1 - Var(G - V) / Var(G) over the step's tokens, with V the critic's values before the "
        "update and G the returns that it is trained on.",
        "1 is perfect, 0 is as good as a constant, below 0 is worse than a constant. With lam below 1 the returns "
        "are partly made of the values, so the number is too favourable.",
    ),
    "value/mean": Term(
        "reward",
        "Mean of the critic's values over the step's tokens, before the update.",
        "It should follow reward/mean, minus the KL penalty in the reward.",
    ),
    "value/error": Term(
        "reward squared",
        "Mean squared error of the values against the returns, measured during the update.",
        "It should fall below the variance of the returns. It stays above 0 if the same prefix can end well or "
        "badly.",
    ),
    "value/clipped": Term(
        "fraction",
        "Share of tokens whose value had moved too far to be trained on (loss.value.clip).",
        "Near 1 the clip, in units of reward, is too small for these rewards: the critic hardly learns.",
    ),
    "value/gradient_share": Term(
        "fraction",
        "The critic's part of the gradient in layers shared with the policy: its norm over the sum of both norms.",
        "Near 1 the critic decides how the shared layers change: lower loss.value.coef.",
    ),
    "kl/coef": Term(
        "reward per nat",
        "Coefficient of the KL to the reference in this step, as adaptive_kl has set it.",
        "It rises while kl/completion is above its target, and falls while it is below.",
    ),
    "kl/completion": Term(
        "nats per completion",
        "The KL that adaptive_kl controls: KL(policy || reference) of a completion, exact over the vocabulary at "
        "each token if a term computes that, else the sum of log-ratios of the sampled tokens (k1).",
        "Compare it with adaptive_kl.target. The sum of log-ratios is unbiased but noisy, and negative in some "
        "steps.",
    ),
}

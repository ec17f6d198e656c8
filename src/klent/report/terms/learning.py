"""Metrics of a step's update: entropy, divergence, objective, gradient, time."""

from klent.report.terms.term import Term

LEARNING: dict[str, Term] = {
    "policy/entropy": Term(
        "nats per token",
        "Mean entropy of the distributions that the tokens were sampled from; of the model itself if "
        "a data set is replayed.",
        "How much the policy still explores: exp(entropy) is the number of equally likely choices with the "
        "same entropy. At 0 the policy has collapsed and the reward can hardly rise further.",
    ),
    "policy/entropy_rescored": Term(
        "fraction",
        "Share of completions whose entropy a forward pass of the trainer computed; only with rollout.engine=vllm.",
        "1, because vLLM reports no entropy. The pass uses the same weights and temperature, up to `sync/gap`.",
    ),
    "policy/entropy_delta": Term(
        "nats per token",
        "Change of entropy that one update caused, measured on the same probe tokens before and after it.",
        "Usually negative with a reward. It has no noise from sampling new prompts.",
    ),
    "policy/entropy_delta_predicted": Term(
        "nats per token",
        "The same change as predicted by the covariance theorem: minus the covariance of a token's "
        "log-probability with the change of that log-probability.",
        "It should have the sign of the measured change. The theorem is first-order: the two diverge when an "
        "update is large.",
    ),
    "policy/entropy_delta_exact": Term(
        "nats per token",
        "The same change as predicted by the exact effect of each token's update on the entropy at its position, "
        "times one step size for all logits, fitted to the measured change of the log-probabilities.",
        "It leaves out how tokens influence one another through shared weights. Absent if the sampler does not "
        "report Σ p² and Σ p² log p.",
    ),
    "entropy/effect": Term(
        "nats x advantage",
        "Mean exact effect of a token's update on the entropy at its position, per unit of step on the logits.",
        "Negative: the step's updates lower the entropy, leaving out how tokens influence one another. Compare "
        "policy/covariance, which has the opposite sign.",
    ),
    "entropy/spending": Term(
        "fraction",
        "Of the tokens with a nonzero coefficient, the share whose update lowers the entropy.",
        "Near 0.5 with a strongly negative entropy/effect: few tokens cause most of the loss of entropy.",
    ),
    "policy/covariance": Term(
        "nats x advantage",
        "Covariance of log-probability and advantage over the step's tokens.",
        "Positive: likely tokens are rewarded and entropy falls. Negative: unlikely ones are, and it rises.",
    ),
    "covariance/top_0.02": Term(
        "nats x advantage",
        "Mean covariance of the 0.02% of tokens with the largest covariance, rounded up to whole tokens.",
        "Far above the mean: a handful of tokens lowers the entropy. Below 5000 tokens it is the largest.",
    ),
    "covariance/top_0.2": Term(
        "nats x advantage",
        "The same for the top 0.2%.",
        "The tokens that KL-Cov penalises with its setting for 7B parameters.",
    ),
    "covariance/top_2": Term("nats x advantage", "The same for the top 2%.", "Compare it with top_20."),
    "covariance/top_20": Term(
        "nats x advantage",
        "The same for the top 20%.",
        "If it is near the mean of all tokens, the covariance has no tail to clip.",
    ),
    "policy/collision": Term(
        "fraction",
        "Probability that two tokens drawn after the same prefix are equal, estimated by the mean probability of "
        "the sampled tokens.",
        "An unbiased estimate of the mean sum of squared probabilities; 1 means a deterministic policy.",
    ),
    "policy/renyi": Term(
        "nats per token",
        "Mean of Rényi's entropy of order 2, -log Σ p².",
        "Never above policy/entropy. It depends mostly on the likely tokens: if it falls first, the most likely "
        "token takes over while the tail stays.",
    ),
    "forks/threshold": Term(
        "nats per token",
        "Lowest entropy among the 20% of the step's tokens with the highest entropy.",
        "The 80/20 rule trains on the tokens above it; it falls with the entropy.",
    ),
    "forks/entropy_share": Term(
        "fraction",
        "Share of the step's entropy on these 20% of its tokens.",
        "0.2 if all tokens have the same entropy; above 0.7, few tokens are uncertain and most are certain.",
    ),
    "forks/token_share": Term(
        "fraction",
        "Share of the tokens with a nonzero coefficient that are among these 20%.",
        "0.2 if the objective ignores entropy; 1 under the 80/20 rule.",
    ),
    "forks/gradient_share": Term(
        "fraction",
        "Share of the sum of |coefficient| over tokens that is on these 20%.",
        "Equal to forks/token_share unless the loss weights tokens by their entropy.",
    ),
    "selected/fraction": Term(
        "fraction",
        "Tokens that a selector chose; without a selector, those whose coefficient is not 0.",
        "The recipe says what happens to them: kept, dropped or penalised.",
    ),
    "selected/entropy": Term(
        "nats per token",
        "Mean entropy over these tokens.",
        "Compare it with rest/entropy to see what was selected for.",
    ),
    "rest/entropy": Term("nats per token", "Mean entropy over all other tokens.", "See selected/entropy."),
    "selected/covariance": Term(
        "nats x advantage",
        "Mean covariance over the selected tokens.",
        "Large and positive for tokens that Clip-Cov or KL-Cov chose.",
    ),
    "rest/covariance": Term(
        "nats x advantage", "Mean covariance over all other tokens.", "How much they still lower the entropy."
    ),
    "law/entropy_spent": Term(
        "fraction",
        "Share of the initial entropy that is gone, from means over the first and the last tenth of the steps.",
        "At 0.9 most of a run's gain has been made; further steps gain little.",
    ),
    "law/r2": Term(
        "fraction",
        "Share of the reward's variance over the steps so far that R = -a exp(H) + b explains.",
        "Below 0.5 no ceiling is given. Absent before six steps, with a thermostat and with a mixture.",
    ),
    "law/ceiling": Term(
        "reward",
        "Reward that the fit predicts at zero entropy, -a + b.",
        "What this data and model reach if all entropy is spent; valid only for runs that let entropy fall. Absent "
        "if the reward of the latest steps lies above its interval, which refutes the fit.",
    ),
    "law/ceiling_low": Term(
        "reward",
        "Lower end of the ceiling's 95% interval, widened for the correlation of consecutive steps.",
        "Wide until the entropy has changed much.",
    ),
    "law/ceiling_high": Term("reward", "Upper end of the same interval.", "See law/ceiling_low."),
    "law/floor_step": Term(
        "step",
        "Step at which entropy reaches 0.05 nats per token, extrapolated from its recent rate and from the rate "
        "that the covariance predicts.",
        "Absent if the entropy does not clearly fall, or falls slowly.",
    ),
    "policy/prob_mismatch": Term(
        "fraction",
        "Mean distance between the trainer's and the sampler's probability of a token; only in logs of verl.",
        "Like policy/logp_mismatch, on the scale of probabilities.",
    ),
    "policy/staleness": Term(
        "optimizer steps",
        "Optimizer steps that the policy took between sampling the step's oldest completion and training on it.",
        "rollout.staleness times the optimizer steps per step. Ratios are then relative to the policy that sampled.",
    ),
    "policy/logp_mismatch": Term(
        "nats",
        "Mean distance |logp - logp_gen| between the trainer's and the sampler's log-probability of a token.",
        "Rounding alone gives below 1e-3 in float32 and below 0.05 in bfloat16. More means that the two "
        "disagree about the model, the temperature or the template.",
    ),
    "policy/row_mismatch": Term(
        "nats",
        "Largest distance between a token's log-probability in the trainer's pass and in a pass over its row alone: "
        "not packed, not padded, without a cache.",
        "Measured on the longest completion at steps 1, 2, 4, ..., 64 and every 64th. Rounding alone gives below "
        "1e-4 in float32. More means that packing or padding changes the gradient.",
    ),
    "kl/reference": Term(
        "nats per token",
        "KL divergence of the policy from the reference, by the k3 estimator on sampled tokens; exact at every "
        "action if actions are vectors.",
        "How far the policy has moved in total. Absent if the run keeps no reference in memory.",
    ),
    "kl/sequence": Term(
        "nats per sequence",
        "KL(policy ‖ reference) between distributions over whole completions, exact at every token; importance "
        "weights correct for samples of an older policy; mean over completions.",
        "`sequence_kl` penalises it; without that term it is absent. Divide it by the mean length for nats per "
        "token. If actions are vectors it is always there; for a denoiser it is an upper bound of the KL between "
        "images.",
    ),
    "policy/sequence_entropy": Term(
        "nats per sequence",
        "Entropy of the policy's distribution over whole completions: the sum over tokens, mean over completions.",
        "`sequence_entropy` changes it. At equal entropy per token it grows with length.",
    ),
    "sequence/ess": Term(
        "fraction",
        "Effective sample size of the prefix weights (policy over sampler) at the completions' last tokens: "
        "(mean weight)² over mean squared weight.",
        "1 if the policy itself sampled. Below 0.1 a few completions dominate the sequence terms: take fewer "
        "optimizer steps per batch, or set `weight_max`.",
    ),
    "sequence/chi2": Term(
        "",
        "The policy's χ² from the sampler at a token, estimated by the mean of ratio² - 1 over sampled tokens.",
        "The mean square of the weights grows as (1 + χ²)^tokens: χ² times the length should stay below 1.",
    ),
    "kl/update": Term(
        "nats per token",
        "KL divergence between the policy before and after one update, on that step's tokens.",
        "The size of the step in distribution space; a spike means that a step was too large.",
    ),
    "objective/loss": Term(
        "",
        "Value of the loss that was differentiated.",
        "For a policy gradient only the gradient has a meaning: do not expect the value to fall.",
    ),
    "objective/zero_fraction": Term(
        "fraction",
        "Tokens whose coefficient is exactly 0: they give no gradient and cost no backward pass.",
        "From groups with equal rewards, clipping, or a token selector. Near 1, the step does little.",
    ),
    "objective/clip_low": Term(
        "fraction",
        "Tokens clipped because the ratio fell below 1 - clip_low while the advantage was negative.",
        "0 on the first optimizer step of a step by construction; above 0.2, the step is too large.",
    ),
    "objective/clip_high": Term(
        "fraction",
        "Tokens clipped because the ratio rose above 1 + clip_high while the advantage was positive.",
        "Clipping here suppresses unlikely good tokens, which costs entropy; clip-higher relaxes it.",
    ),
    "objective/clip_dual": Term(
        "fraction",
        "Tokens whose loss was capped because the ratio was very large while the advantage was negative.",
        "0 on the first optimizer step of a step; it keeps a few tokens from dominating the gradient.",
    ),
    "objective/clip": Term(
        "fraction",
        "Tokens clipped on either side, for logs that do not separate the two.",
        "The sum of clip_low and clip_high.",
    ),
    "objective/weight": Term(
        "fraction",
        "Mean weight of a token in the loss term that the recipe's `weigh` names.",
        "At 1 the update is unchanged.",
    ),
    "objective/<name>": Term(
        "",
        "Mean of a number that one term of the loss reports about itself.",
        "See the docstring of that function in klent.objectives.",
    ),
    "select/<name>": Term(
        "fraction",
        "Share of tokens that the selector with this name chose, in the first pass of the step.",
        "The recipe's fraction, or less if too few qualify. With `mask`, only these are trained on.",
    ),
    "thermostat/target": Term(
        "nats per token", "The target entropy of the thermostat.", "Compare policy/entropy with it."
    ),
    "thermostat/low": Term(
        "nats per token",
        "Lower edge of the band of a thermostat that steers by sign.",
        "Below it only negative advantages are trained on.",
    ),
    "thermostat/high": Term(
        "nats per token", "Upper edge of that band.", "Above it only positive advantages are trained on."
    ),
    "thermostat/error": Term(
        "nats per token",
        "Target minus the step's entropy; for a band, its nearer edge minus the entropy, and 0 inside.",
        "The entropy of one step is noisy: judge by the mean over ten steps, which should be near 0.",
    ),
    "thermostat/value": Term(
        "",
        "The number that the thermostat controls, as used in the step: the bonus coefficient, clip_high, ...; with "
        "steer: sign it is 1 if only positive advantages were trained on, -1 if only negative ones, 0 if all.",
        "If it stays at its bound, the thermostat has lost control: widen thermostat.low or high. If the sign never "
        "changes, it does not move the entropy: check whether rewards still differ within groups.",
    ),
    "group/zero_variance": Term(
        "fraction",
        "Groups whose scored completions all got the same reward, or of which fewer than two were scored.",
        "Their advantages are 0. High if the task is far too hard (all wrong) or solved (all right), or if rewards "
        "fail. Absent if every group has one completion.",
    ),
    "grad/norm": Term(
        "",
        "Euclidean norm of the gradient before clipping.",
        "Healthy if it stays within a factor of ten; compare it with optimizer.max_grad_norm.",
    ),
    "update/skipped": Term(
        "",
        "Number of optimizer steps left out because the loss or the gradient was not finite.",
        "0 in a healthy run. Several in a row stop training.",
    ),
    "update/rounded_away": Term(
        "fraction",
        "Of the weights with a gradient, the share that an optimizer step left unchanged, bit for bit.",
        "Near 0 with float32 weights. Near 1 with bfloat16 weights and small learning rates: those changes are lost "
        "for good. Set precision.weights: float32.",
    ),
    "objective/distill": Term(
        "nats per token",
        "Divergence between policy and target at the sampled tokens, over the whole vocabulary, before coef.",
        "It falls as the policy learns the target. rollout.mixture.distill names the divergence.",
    ),
    "mismatch/log_ratio": Term(
        "nats",
        "Mean distance |logp_old - logp_gen| between the trainer's and the sampler's log-probability of a token, at "
        "the start of the step.",
        "Rounding only, if sampler and trainer are one model; a rise points to a sampler with old weights.",
    ),
    "mismatch/kept": Term(
        "fraction",
        "Tokens whose weight trainer/sampler is not 0.",
        "1 if nothing is masked. Masked tokens still count in the divisor, so the step gets smaller.",
    ),
    "mismatch/ess": Term(
        "fraction",
        "Effective sample size (Σw)²/Σw² of the weights trainer/sampler before their bounds, over the number of "
        "tokens (or of completions, with mode: mask_sequence).",
        "1 if the two agree. Below 0.1 a few samples dominate the step: find out why sampler and trainer differ.",
    ),
    "mixture/alpha": Term(
        "",
        "Share of the policy in the mixture that was sampled from, mean over tokens.",
        "1 is the policy, 0 the target. If a criterion chooses it, it differs from token to token.",
    ),
    "mixture/policy_reward": Term(
        "",
        "Mean reward of the policy alone, estimated from the mixture's samples: each completion is weighted by its "
        "probability under the policy over that under the mixture, per prompt.",
        "reward/mean is that of the mixture. On long completions a single weight dominates and the estimate is "
        "noise: trust the evaluation.",
    ),
    "mixture/kl_policy": Term(
        "nats per token",
        "KL divergence of the mixture from the policy, mean over sampled tokens.",
        "The cost of sampling off-policy; it falls as the policy approaches the target.",
    ),
    "mixture/kl_target": Term(
        "nats per token",
        "KL divergence of the mixture from the target, mean over sampled tokens.",
        "Equal to mixture/kl_policy at the Chernoff point.",
    ),
    "mixture/ess": Term(
        "fraction",
        "Effective sample size (Σw)²/Σw² of the weights policy/mixture before their bounds, over the number "
        "of tokens (or of completions, with weights.ratio: sequence).",
        "1 if the policy itself is sampled. Below 0.1 a few samples dominate the step: raise alpha, target "
        "it with the criterion ess, or use weights per token.",
    ),
    "optimizer/lr": Term("", "Learning rate of the step.", "Follows the warm-up and the schedule."),
    "time/step": Term("s", "Wall time of the whole step.", "Rollout, score and train are its parts."),
    "time/rollout": Term("s", "Wall time of sampling the completions.", "Usually the largest part."),
    "time/rollout_floor": Term(
        "s",
        "Lower bound for sampling: the time for its matrix products at this machine's speed, or for reading the "
        "weights.",
        "time/rollout over it says how far sampling is from the machine's limit; 2 is good on a CPU.",
    ),
    "time/train_floor": Term(
        "s",
        "Lower bound for training: the time for the matrix products of forward and backward at this machine's speed.",
        "time/train over it says how far training is from the machine's limit; below 2 is good.",
    ),
    "time/score": Term(
        "s", "Wall time of the rewards.", "Large values mean a slow reward or one that times out."
    ),
    "time/train": Term(
        "s",
        "Wall time of forward, backward and the optimizer step.",
        "It falls as objective/zero_fraction rises.",
    ),
    "tokens/rollout": Term("tokens", "Tokens sampled in the step.", "Completions x mean length."),
    "tokens/prefill": Term(
        "tokens",
        "Prompt tokens that the sampler read, without padding; only with an environment.",
        "Ideally each group's opening and all text between turns once; more means that turns are read again.",
    ),
    "tokens/train": Term(
        "tokens",
        "Tokens that went through the trained model, prompts included.",
        "A prompt that a packed group shares counts once.",
    ),
    "tokens/rollout_per_second": Term(
        "tokens/s", "Tokens sampled per second: tokens/rollout over time/rollout.", "Higher is better."
    ),
    "tokens/train_per_second": Term(
        "tokens/s", "Tokens trained on per second: tokens/train over time/train.", "Higher is better."
    ),
    "tokens/per_second": Term(
        "tokens/s",
        "Tokens per second of the whole step, for logs that do not separate sampling and training.",
        "Higher is better.",
    ),
    "memory/peak_gb": Term(
        "GB",
        "Peak memory so far, of the GPU or, on a CPU, of the process; 1 GB is 10^9 bytes.",
        "It should stop rising after the first steps.",
    ),
}
"""Metrics of the update -> Term."""

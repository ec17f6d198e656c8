"""Metrics of a step's episodes: rewards, answers, lengths."""

from klent.report.terms.term import Term

SAMPLING: dict[str, Term] = {
    "step": Term("", "Optimizer step, counted from 1.", "In eval.jsonl step 0 is the model before training."),
    "reward/mean": Term(
        "reward",
        "Mean reward of the step's completions, unscorable ones left out.",
        "It should rise, noisily: a step has few prompts. Judge a method by the held-out accuracy instead.",
    ),
    "reward/std": Term(
        "reward",
        "Standard deviation of the reward over the step's completions.",
        "Near 0, every completion gets the same reward, and group baselines leave no advantage.",
    ),
    "reward/unscorable": Term(
        "fraction",
        "Completions of which a reward raised, timed out, exited or returned no finite number, or none said "
        "anything.",
        "0 in a healthy run. They are left out of the baseline and get advantage 0; a high share points to a "
        "bug in the reward function.",
    ),
    "reward/<name>": Term(
        "reward",
        "Mean of one of several rewards, before its weight.",
        "Shows which reward drives a rise of the weighted sum.",
    ),
    "semantic/entropy": Term(
        "nats",
        "Entropy of a prompt's answers, equivalent answers counted as one; mean over the step's prompts.",
        "0 if all agree, log(group_size) if no two do. Under EMPO it falls; at 0 nothing is left to learn, "
        "right or wrong.",
    ),
    "semantic/entropy_p10": Term(
        "nats",
        "Its 10th percentile over the step's prompts.",
        "At 0, the answers to the easiest prompts already agree.",
    ),
    "semantic/entropy_p90": Term(
        "nats", "Its 90th percentile.", "Far above the mean: the answers to some prompts still scatter."
    ),
    "semantic/clusters": Term(
        "", "Number of different answers per group, mean.", "From 1 (agreement) to group_size."
    ),
    "semantic/majority": Term(
        "fraction",
        "Share of a group that gave its most frequent answer, mean.",
        "Agreement, not accuracy: compare it with the held-out accuracy.",
    ),
    "semantic/used": Term(
        "fraction",
        "Groups with a nonzero reward, that is, within the entropy thresholds.",
        "Groups outside the thresholds give no gradient.",
    ),
    "semantic/empty": Term(
        "fraction",
        "Completions without an answer.",
        "They agree with nothing and get 0. If high, check `same` or raise `rollout.max_tokens`: truncated "
        "completions count as without an answer.",
    ),
    "semantic/copied": Term(
        "fraction",
        "Completions that only repeat words of their question.",
        "They count as without an answer; a rise means that the policy has learned to copy.",
    ),
    "semantic/<name>": Term("", "A number that the reward logs about the answers.", "See the reward."),
    "completion/length": Term(
        "tokens",
        "Mean number of sampled tokens in a completion, the stop token included.",
        "Watch for growth without reward, which averaging a loss over sequences can cause.",
    ),
    "completion/truncated": Term(
        "fraction",
        "Completions that ended at rollout.max_tokens instead of a stop token.",
        "A truncated answer is usually scored as wrong; above 0.1, raise rollout.max_tokens.",
    ),
    "completion/repetition": Term(
        "fraction",
        "Share of a completion's 4-grams of tokens that occur earlier in it, mean over completions.",
        "Below 0.1 in most text. A rise means that the policy falls into loops; absent if all completions "
        "are shorter than 4 tokens.",
    ),
    "episode/return": Term(
        "reward",
        "Sum of the rewards of an episode's turns, mean over episodes.",
        "What the policy earns in an environment; absent where completions are scored instead.",
    ),
    "episode/turns": Term(
        "", "Turns of an episode, mean over episodes.", "Near the budget of turns, episodes are cut."
    ),
    "sync/gap": Term(
        "nats",
        "Mean distance between the engine's and the trainer's log-probability on a canary batch, after a sync.",
        "Rounding alone: 1e-5 in float32. More means that the engine samples from other weights, or in another "
        "way, than the trainer takes it to, and the run stops with the reason. Absent where both share weights.",
    ),
    "sync/gap_max": Term("nats", "The largest such distance on the canary batch.", "As `sync/gap`."),
    "sync/arrived": Term(
        "fraction",
        "Share of the last update's change in log-probability that the engine shows.",
        "1 where the new weights have arrived, 0 where the engine kept the old ones; below 0.5 the run stops. "
        "Absent at the first sync, and where rounding hides the change.",
    ),
}
"""Metrics of the rollout -> Term. A name with ``<name>`` stands for a family; exact names take precedence."""

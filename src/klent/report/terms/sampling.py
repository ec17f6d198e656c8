"""Metrics of a step's episodes: rewards, answers, lengths."""

from klent.report.terms.term import Term

SAMPLING: dict[str, Term] = {
    "step": Term("", "Step, counted from 1.", "In eval.jsonl step 0 is the model before training."),
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
        "Share of completions for which a reward raised, timed out, exited or returned no finite number, or for "
        "which every reward returned None.",
        "0 in a healthy run. They are left out of the baseline and get advantage 0; a high share points to a "
        "bug in the reward function.",
    ),
    "reward/<name>": Term(
        "reward",
        "Mean of one of several rewards, before it is multiplied by its weight.",
        "It shows which reward drives a rise of the weighted sum.",
    ),
    "semantic/entropy": Term(
        "nats",
        "Entropy of the answers to a prompt, with equivalent answers counted as one; mean over the step's prompts.",
        "0 if all agree, log(group_size) if no two do. Under EMPO it falls; at 0 nothing is left to learn, "
        "right or wrong.",
    ),
    "semantic/entropy_p10": Term(
        "nats",
        "Its 10th percentile over the step's prompts.",
        "At 0, the answers to the easiest prompts already agree.",
    ),
    "semantic/entropy_p90": Term(
        "nats", "Its 90th percentile.", "Far above the mean: the answers to some prompts still differ widely."
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
        "Share of groups whose entropy is within the thresholds, so that their reward is not 0.",
        "Groups outside the thresholds give no gradient.",
    ),
    "semantic/empty": Term(
        "fraction",
        "Share of completions without an answer.",
        "They agree with nothing and get 0. If it is high, check `same` or raise `rollout.max_tokens`: truncated "
        "completions count as without an answer.",
    ),
    "semantic/copied": Term(
        "fraction",
        "Share of completions that only repeat words of their question.",
        "They count as without an answer; a rise means that the policy has learned to copy.",
    ),
    "semantic/<name>": Term("", "A number that the reward logs about the answers.", "See the reward."),
    "completion/length": Term(
        "tokens",
        "Mean number of sampled tokens in a completion, the stop token included.",
        "Watch for growth without a rise of the reward; averaging the loss over sequences can cause it.",
    ),
    "completion/truncated": Term(
        "fraction",
        "Share of completions that ended at rollout.max_tokens instead of a stop token.",
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
        "", "Turns of an episode, mean over episodes.", "Near task.max_turns, episodes are cut."
    ),
    "sync/gap": Term(
        "nats",
        "Mean distance between the engine's and the trainer's log-probabilities on a fixed test batch, after a sync.",
        "Rounding alone gives 1e-5 in float32. More means that the engine samples with other weights, or in another "
        "way, than the trainer assumes; the run then stops with the reason. Absent if both share their weights.",
    ),
    "sync/gap_max": Term("nats", "The largest such distance on the test batch.", "As `sync/gap`."),
    "sync/arrived": Term(
        "fraction",
        "Share of the last update's change in log-probability that the engine shows.",
        "1 if the engine has the new weights, 0 if it kept the old ones; below 0.5 the run stops. Absent at the "
        "first sync, and if rounding hides the change.",
    ),
}
"""Metrics of the rollout -> Term. A name with ``<name>`` stands for a family; exact names take precedence."""

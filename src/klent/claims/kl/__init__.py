"""Claims about KL divergence: its estimators in rewards and losses, and closed forms."""

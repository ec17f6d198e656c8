"""What travels through a step: prompts, episodes, and the batch of per-action numbers made of them."""

"""Sets of streams: what there is only in some steps, and what is known of actions or of completions."""

from klent.streams.registry import REGISTRY

OF_MIXTURES = frozenset(name for name, stream in REGISTRY.items() if "sampling from a mixture" in stream.when)
"""What there is only where a mixture of policy and target was sampled."""

OF_CRITIC = frozenset(name for name, stream in REGISTRY.items() if stream.producer == "critic") | {"returns"}
"""What there is only where a critic is."""

OF_BELLMAN = frozenset({"weight", "logit_target", "logit_second_target"})
"""What there is only where values are learnt from logged play."""

PER_ACTION = frozenset(name for name, stream in REGISTRY.items() if stream.shape == "[B, T]")
"""What is known of each action."""

PER_COMPLETION = frozenset(name for name, stream in REGISTRY.items() if stream.shape == "[B]")
"""What is known of each completion; advantage estimators read these."""

OF_IMAGES = frozenset(name for name, stream in REGISTRY.items() if stream.producer == "denoiser")
"""What there is only where images are noised again."""

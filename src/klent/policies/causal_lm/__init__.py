"""A causal language model as a policy: packing, attention and the fused head."""

"""Policies whose actions are vectors: motor commands, denoising steps."""

"""Where completions come from: engines, and the decoders and samplers beneath them."""

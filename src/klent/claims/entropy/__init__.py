"""Claims about entropy: what changes it in training, and what it costs and buys."""

"""What is trained: each policy turns a batch into the log-probability and entropy of every action."""

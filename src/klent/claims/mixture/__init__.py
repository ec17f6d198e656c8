"""Claims about sampling from a geometric mixture of policy and teacher."""

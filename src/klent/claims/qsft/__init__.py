"""Claims about Q-SFT, which learns values by weighted cross-entropy."""

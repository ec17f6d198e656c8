"""Claims about training without labels: semantic entropy as a reward, and entropy minimisation."""

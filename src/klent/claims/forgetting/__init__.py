"""What learning a new task does to an old one, and what reinforcement adds to what a model can do."""

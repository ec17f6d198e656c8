"""The small worlds that experiments run in, apart from the claims that they test."""

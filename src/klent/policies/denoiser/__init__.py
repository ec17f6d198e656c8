"""Denoisers: policies that turn noise into an image step by step."""

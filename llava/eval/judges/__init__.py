"""Judging answers with another model: its client, how its replies are read, and what is kept of them."""

"""Two results of one task side by side."""

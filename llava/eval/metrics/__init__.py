"""Rules by which answers are scored, without files and without tasks."""

"""The reference's protocol between controller, workers and pages, and the workers themselves."""

"""Programs that let people and other programs talk to a model."""

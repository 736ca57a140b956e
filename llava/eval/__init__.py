"""Programs that ask a model prepared questions."""

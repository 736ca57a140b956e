"""Training: arguments, data, masks, sampling, the trainer and the programs that start it."""

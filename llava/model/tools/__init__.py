"""What the weight tools stand on: deltas, extraction, inspection."""

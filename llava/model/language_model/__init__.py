"""LLaVA on each LLM family: one short file each."""

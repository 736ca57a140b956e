"""Steps of `llava.model.convert_hf`: between LLaVA's checkpoints and those of transformers (llava-hf)."""

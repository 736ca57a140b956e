"""A LLaVA of real, pretrained parts: SmolLM2, EfficientNet-Lite0 and easy-VQA, each from a Python package."""

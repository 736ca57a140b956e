"""Tensor functions of the multimodal part, without a model: splicing, the loss, packed attention."""

"""The quickstart: a small LLaVA trained from scratch on the handwritten digits of scikit-learn."""

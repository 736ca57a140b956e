"""What watches the steps: losses that are not finite, samples without supervised tokens, evaluation."""

"""What stands behind the scoring programs that carry the reference's names."""

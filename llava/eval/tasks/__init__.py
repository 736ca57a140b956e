"""The benchmarks, one short file each; llava/eval/tasks/registry.py lists them."""

"""Many tasks with one model: the run, the table beside published scores, charts."""

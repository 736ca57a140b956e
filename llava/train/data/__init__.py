"""From a file of records to samples and batches: readers, the memory-mapped table, datasets, checks."""

"""What --dry_run shows: a rendered sample, what trains, the memory it takes."""

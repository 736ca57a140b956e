"""What a run writes and how it resumes: folders, atomic saving, the manifest of a run."""

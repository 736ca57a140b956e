"""Running a benchmark: questions are asked, answers kept, scored, put into a table and compared."""

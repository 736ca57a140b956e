"""Answers of several models side by side: the JSON of the reference's comparison page, and a page of it."""

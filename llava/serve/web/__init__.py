"""The web page: a chat with images in front of a controller, or of an engine in the same process."""

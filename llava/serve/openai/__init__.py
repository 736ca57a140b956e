"""The OpenAI-compatible server: requests and their forms, dialogs, answers, streams, the application."""

"""Other people's clients, run unchanged against this service; see README.md."""

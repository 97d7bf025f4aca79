"""What `python -m numbagn` does."""

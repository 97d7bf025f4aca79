"""What is needed for one other library each. Nothing here is imported before that library's objects arrive."""

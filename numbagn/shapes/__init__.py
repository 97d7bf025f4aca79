"""What follows from shapes and strides alone, for Python and for compiled callers: integers in, integers out."""

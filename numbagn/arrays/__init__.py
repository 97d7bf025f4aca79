"""Arrays: the kinds that are taken and their dtypes, those in a GPU's memory, memory that is used again."""

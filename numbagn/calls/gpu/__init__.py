"""How a call runs for arrays in a GPU's memory."""

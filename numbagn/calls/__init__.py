"""How a call runs: checked, planned, run."""

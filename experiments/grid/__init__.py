"""One comparison per scenario, and what all of them say together."""

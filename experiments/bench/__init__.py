"""How fast the parts are: `python -m experiments.bench PART`."""

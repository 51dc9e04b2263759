"""How wrong the simulator is: exactness, distributions by load, and decisions."""

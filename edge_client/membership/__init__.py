"""How a machine becomes a device of a federation, stays one, and leaves it."""

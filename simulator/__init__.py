"""A federation under virtual time: the production code of both sides, and a world that fails."""

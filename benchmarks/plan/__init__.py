"""How well plans predict what happens."""

"""How shards become full parameters and gradients become shards: one protocol, three ways."""

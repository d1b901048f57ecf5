"""Loss curves with 8-bit optimizer state beside those with fp32 state."""

"""Whether an optimizer on the CPU would be quicker than bringing its state to the device."""

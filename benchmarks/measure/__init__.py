"""What all benchmarks of training share: what is trained, processes for the ranks, clocks, memory, records."""

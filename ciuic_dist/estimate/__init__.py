"""What training takes on a machine, found out before the run: traces, rates, plans for both."""

"""Decisions about memory as pure functions of what a step touches and what the machine can do."""

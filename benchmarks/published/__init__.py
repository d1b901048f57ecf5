"""What the planner says of trainings whose figures others have published."""

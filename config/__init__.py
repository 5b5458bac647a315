"""What may an operator set? Settings, defaults and channel rules, and nothing else."""

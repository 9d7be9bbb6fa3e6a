"""What the commands do, by subject."""

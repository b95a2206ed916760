"""What is done with a config: verify it, export it, talk through it, have people grade it."""

"""What every room stands on: errors, settings, estimates, files, progress."""

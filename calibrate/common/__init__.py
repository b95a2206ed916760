"""What every other package uses: errors, settings, estimates, files, progress."""

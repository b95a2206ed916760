"""Where models are made and shipped: calibrations beside a training run, and on the Hub."""

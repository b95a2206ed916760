"""What a calibration leaves in its directory: the config, its vector, the evidence, the report."""

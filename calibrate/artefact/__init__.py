"""What is written: the config, its sections, the evidence, the report, the directory."""

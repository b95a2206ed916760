"""Who reads presence: choosing judges, teaching a probe, asking, and holding them to readers."""

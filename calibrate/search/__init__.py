"""From pilots to one verified strength: blocks, study, verification, and why there is none."""

"""The paper's laws of the strength (arXiv:2602.02712), fitted to a few passes and tested."""

"""A model and its parts: loading from wheels and GGUF, blocks and hooks, prompts to tokens."""

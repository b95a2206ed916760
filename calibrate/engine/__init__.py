"""Running a model: passes, caches, generation, cross-entropy, and the steering vector itself."""

"""A concept's texts, the model's own replies, and the steering vectors extracted from them."""

"""The reward model as a service: scoring in batches by tokens, the routes, and who may ask how much of them."""

"""What torch holds: names to weights, the Rule Adapter, the reward model, one chat-to-token-ids function. No Ray."""

"""One worker loop on Ray Train with DeepSpeed, for the Rule Adapter and the reward model alike."""

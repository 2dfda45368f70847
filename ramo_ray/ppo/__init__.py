"""PPO by OpenRLHF on Ray: policy, reference, critic, reward and rollouts from one configuration."""

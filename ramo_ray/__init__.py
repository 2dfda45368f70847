"""Preference labels by data-adaptive safety rules, the reward model they train and the policy it aligns, on Ray."""

__version__ = "0.1.0"

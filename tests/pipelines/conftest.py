from hypothesis import settings

# A busy machine is no reason to fail, and a run of the suite repeats the last one's examples.
settings.register_profile("suite", deadline=None, derandomize=True)
settings.load_profile("suite")

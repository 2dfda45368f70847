"""A package, so that Ray's workers find these tests by name: OpenRLHF installs one that is called the same."""

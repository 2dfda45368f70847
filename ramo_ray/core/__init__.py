"""The method itself: pure functions of arrays and frozen records. numpy and the standard library, nothing else."""

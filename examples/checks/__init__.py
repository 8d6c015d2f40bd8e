"""The parts of ``examples/check``, which shows that each example does what it says."""

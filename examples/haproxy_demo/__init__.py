"""The parts of ``examples/demo``; ``demo.py`` beside this folder tells them as one story."""

"""Where events come from: the running kernel, or a recording of it."""

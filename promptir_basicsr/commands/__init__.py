"""The verbs of `basicsr`, one module each: arguments, messages, exit status."""

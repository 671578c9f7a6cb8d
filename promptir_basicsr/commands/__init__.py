"""The verbs of `basicsr`, a module each: arguments, messages, exit status."""

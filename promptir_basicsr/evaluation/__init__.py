"""What a validation measures, and its tables and pictures."""

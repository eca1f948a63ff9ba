"""What runs cost and how good they were: numbers, tables, pictures."""

"""What a request wants to see of its forward passes: options, what they cost, arrays by name."""

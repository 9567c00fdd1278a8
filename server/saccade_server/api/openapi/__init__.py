"""What the API says of itself: the OpenAPI document, its models and examples, and the page."""

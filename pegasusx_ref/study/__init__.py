"""What makes the model visible: pictures of who sees whom, and of what attention does."""

"""What a value may be, wherever it comes from, and the one sentence that says what it should have been."""

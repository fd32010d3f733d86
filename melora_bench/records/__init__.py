"""What a finished run leaves behind, and what makes two runs the same."""

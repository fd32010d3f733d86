"""What is learned and how it is scored; each task is a configs/task/<name>.yaml over a class of this package."""

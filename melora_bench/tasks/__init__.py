"""What is learned and how it is scored: tasks, their data, batches and metrics."""

"""What a benchmark is: data, vocabulary, loss, search and metrics put together."""

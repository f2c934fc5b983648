"""What every room may use: events, devices, words that options take, several processes."""

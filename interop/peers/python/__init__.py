"""What all peers written in Python share, whatever their library. An adapter for each library stands beside it."""

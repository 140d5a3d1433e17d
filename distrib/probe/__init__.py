"""What one node can do, and what the network between nodes can: the measuring half of `launch doctor`."""

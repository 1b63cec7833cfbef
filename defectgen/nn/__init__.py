"""PyTorch building blocks that several methods share. They depend on no method."""

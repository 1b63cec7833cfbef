"""What two methods really share, in PyTorch. Knows no method and no file."""

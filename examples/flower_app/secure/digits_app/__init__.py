"""A Flower app: a PyTorch model of handwritten digits, trained by several sites."""

"""What `draw_samples.py` draws with: a small renderer, surfaces of five products, and five kinds of defects."""

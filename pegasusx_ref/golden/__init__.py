"""What each layer computes, in plain NumPy, with the sections of the specification in the docstrings.

Read them in this order: `embedding`, `normalization`, `feed_forward`, `attention`, `global_local`, `head`, `top_k`; for
weights in 4 or 8 bits `quantization`, for the pretraining objective `gap_sentences`.
"""

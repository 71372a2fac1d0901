"""What each layer computes, in plain NumPy: one specification section a function.

Read them in this order: `embedding`, `normalization`, `feed_forward`, `attention`, `global_local`, `head`, `top_k`.
"""

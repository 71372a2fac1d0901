"""Checkpoints of the paper's Flax code: the file format and the names. [spec 14.11]"""

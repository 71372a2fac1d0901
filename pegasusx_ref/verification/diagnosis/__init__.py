"""Diagnosis: the likely bugs that explain a wrong tensor."""

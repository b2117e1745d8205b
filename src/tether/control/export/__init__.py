"""Policies in forms that other programs read: ONNX, and a folder of the Hugging Face hub."""

"""Vertex AI, Cloud Storage and Kubeflow servers: the one room that imports google.cloud."""

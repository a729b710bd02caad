"""pipestill: Kubeflow and Vertex AI pipeline components that tune and distil language models."""

__version__ = "0.1.0"

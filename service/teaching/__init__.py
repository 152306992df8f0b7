"""Teaching: good images of products, and jobs that learn them in processes of their own while the service serves."""

__all__ = ["archive", "images", "jobs", "teaching"]

"""Folders of images as training and test samples, with everything checked before it is used."""

__all__ = ["areas", "datasets", "demo", "masks", "product_folders", "selection", "warnings", "white_levels"]

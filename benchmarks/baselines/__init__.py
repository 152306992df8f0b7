"""Other methods, measured in a virtual environment of their own."""

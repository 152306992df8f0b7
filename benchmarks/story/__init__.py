"""A day in a factory, played against a real service while another product is inspected without a pause."""

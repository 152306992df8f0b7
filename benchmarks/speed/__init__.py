"""Time of a prediction, a request and a training, and the service under load."""

"""From features to a product's anomaly map: its flow's likelihoods, capped, and its memory of good patches."""

__all__ = ["bank", "compiled", "fusion", "plain", "scorer", "stacked"]

"""Learning, predicting and serving on more than one machine, with Ray. Everything that knows Ray is in here."""

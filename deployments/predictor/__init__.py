"""The predictor: an HTTP service that answers with the deployed versions."""

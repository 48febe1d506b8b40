"""An HTTP service that transcribes: requests, batches over them, answers, and a front page."""

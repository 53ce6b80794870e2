"""What the chapters on Tallec & Ollivier (2018) share."""

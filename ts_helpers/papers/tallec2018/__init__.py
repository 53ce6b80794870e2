"""What the chapters on Tallec & Ollivier (2018) share; figures and texts stay there."""

"""What the chapters on Tallec & Ollivier (2018) share; tasks are in `datasets`, claims in chapters."""

"""One program for each Python peer: its worker and its client, which speak the contract."""

"""The benchmark: this queue and its peers, in one run, on one server. See README.md."""

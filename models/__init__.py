"""Networks and losses, one concept per file, from the Haar pyramid to the assembled WaveGMS."""

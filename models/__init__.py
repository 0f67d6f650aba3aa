"""Networks and losses, one concept a file, from the Haar pyramid to the assembled WaveGMS."""

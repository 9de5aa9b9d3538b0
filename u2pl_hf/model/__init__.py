"""The network and the conversion of published weights."""
